"""How a command ends: with one line where that says all, with a traceback where it is a bug."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import NoReturn

from learned_optim.errors import WeightsError

# What is raised for a wrong argument, file or connection, WeightsUnavailable included.
_EXPECTED = (OSError, WeightsError)
_INSTALL = "; pip install 'learned-optim[meta-training]' has all that a command needs"
_INTERRUPTED = 130  # as shells have it


def stop(error: Exception, advice: str = "") -> NoReturn:
    """One line, and the exit code that argparse has for arguments that it refuses."""
    print(f"error: {' '.join(str(error).split())}{advice}", file=sys.stderr)
    sys.exit(2)


@contextlib.contextmanager
def ending(*expected: type[Exception]) -> Iterator[None]:
    """End the process without a traceback where the message says all.

    That is for a wrong argument, file or connection, a missing package and an interrupt.

    Args:
        expected: further errors that are no bugs.
    """
    try:
        yield
    except (*_EXPECTED, *expected) as error:
        stop(error)
    except ModuleNotFoundError as error:
        stop(error, _INSTALL)
    except KeyboardInterrupt as interrupt:
        if str(interrupt):
            print(interrupt, file=sys.stderr)
        sys.exit(_INTERRUPTED)
