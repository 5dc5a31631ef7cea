"""The rules `l2l` and `default` on NVIDIA GPUs: the coordinates in one pass over the memory.

`triton` itself is imported when a parameter first needs it.
"""

from __future__ import annotations

from learned_optim.backends.triton.backend import Triton as Triton
