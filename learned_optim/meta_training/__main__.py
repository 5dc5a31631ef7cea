"""`torchrun --nproc-per-node N -m learned_optim.meta_training RECIPE`, or `python -m` for one."""

from __future__ import annotations

import argparse
from pathlib import Path

from learned_optim.command import ending
from learned_optim.meta_training import parallel
from learned_optim.meta_training.runner import REFUSALS, output_folder, run


def main() -> None:
    """Meta-train; goes on from the checkpoint that is there, as after an elastic restart."""
    parser = argparse.ArgumentParser(prog="learned_optim.meta_training", description=main.__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--device", default="cpu", help="cpu, or cuda: one for each process")
    arguments = parser.parse_args()
    with ending(*REFUSALS):
        folder = output_folder(arguments.recipe, arguments.output)
        with parallel.group():
            run(
                arguments.recipe,
                output=folder,
                resume=(folder / "checkpoint.pt").exists(),
                progress=parallel.rank() == 0,
                device=arguments.device,
            )


if __name__ == "__main__":
    main()
