"""Neural art (section 3.4): a rule meta-trained on one style paints what it has not seen.

    python -m benchmarks.paper.neural_art
    python -m benchmarks.paper.neural_art --only new_content

`l2l-art` was meta-trained at 64x64 on parts of two photographs in the style of one painting, for
128 steps. Here: a third photograph in that style, the same in the style of another painting, and
that at 128x128, four times as many pixels. The paper shows curves and pictures and no numbers; what
can be checked is the order: the LSTM below every baseline. Rates of the baselines are chosen on a
grid of 4 a decade on eight other parts of the same photograph, none of which may diverge at it or
at the rate above, since otherwise some of the test runs do. Test runs differ in the part that is
painted; the pictures show the middle of it, painted by the rule and by Adam in as many steps.
Finished parts are kept in `--work` and taken up again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from benchmarks.baselines import Sweep
from benchmarks.learned import PRETRAINED, Learned
from benchmarks.paper import report
from benchmarks.paper.parts import Contest, content_of
from benchmarks.plotting import STYLE, loss_curves
from benchmarks.results import write_json
from benchmarks.runs import Problem, run
from benchmarks.tuning import Grid
from learned_optim.tasks import NeuralArt, Task
from learned_optim.tasks.pictures import photograph, square
from learned_optim.weights import LoadedRule, load_folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STEPS = 128
BUNDLED = "l2l-art"
GRID = Grid(
    {
        "sgd": (1.25, 2.75),
        "momentum": (0.75, 2.5),
        "nag": (0.75, 2.5),
        "adagrad": (-1, 0),
        "rmsprop": (-2.25, -1.25),
        "adam": (-1.25, -0.25),
    },
    per_decade=4,
)


@dataclass(frozen=True)
class Art:
    """One case.

    Attributes:
        title: for people.
        style: the painting.
        size: pixels along a side.
        runs: test runs.
    """

    title: str
    style: str
    size: int
    runs: int

    def task(self, *, whole: bool = False) -> Task:
        """Parts of the photograph that meta-training has not seen; `whole`: its middle."""
        family = NeuralArt(content="golden_gate", style=self.style, size=self.size, whole=whole)
        return family.sample(torch.Generator())


CASES = {
    "new_content": Art("new photograph", "starry_night_crop", 64, 20),
    "new_style": Art("new photograph, new style", "the_scream", 64, 20),
    "large": Art("the same at 128x128", "the_scream", 128, 20),
}


def contest(name: str) -> Contest:
    """What is compared in one of `CASES`."""
    case = CASES[name]
    return Contest(
        name, case.title, case.task(), GRID, STEPS, 1, case.runs, validation_runs=8, margin=1
    )


def paint(case: Art, stepper: Sweep | Learned) -> Tensor:
    """The image after the last step, `(3, size, size)` in [-1, 1]."""
    found = run(
        Problem(case.task(whole=True), 1, STEPS, "picture", 1),
        lambda: stepper,
        measure=lambda params: {"image": params["image"].clone()},
        measure_at=(STEPS,),
    )
    return found.measured[STEPS]["image"][0, 0]


def gallery(cases: Mapping[str, Any], rule: LoadedRule | None, path: Path) -> None:
    """Photograph, painting, and both painted pictures of every case, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context({**STYLE, "axes.grid": False}):
        figure, grid = pyplot.subplots(len(cases), 4, figsize=(9, 2.4 * len(cases)), squeeze=False)
        for row, (name, result) in enumerate(cases.items()):
            line = grid[row]
            case, rate = CASES[name], result["entries"]["adam"]["rate"]
            images = {
                "photograph": square(photograph("golden_gate"), case.size),
                "style": square(photograph(case.style), case.size),
                f"Adam, {STEPS} steps": paint(case, Sweep({"adam": [rate]})),
            }
            if rule is not None:
                images[f"L2L, {STEPS} steps"] = paint(case, Learned(rule))
            for axes in line:
                axes.axis("off")
            for axes, (title, image) in zip(line, images.items(), strict=False):
                _hang(axes, image, title if row == 0 else "")
            line[0].text(
                -0.08, 0.5, case.title, rotation=90, va="center", transform=line[0].transAxes
            )
        figure.tight_layout()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Software": None})
        pyplot.close(figure)


def _hang(axes: Axes, image: Tensor, title: str) -> None:
    pixels = ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    axes.imshow(pixels.permute(1, 2, 0).numpy())
    axes.set_title(title, fontsize=9)


def main() -> None:
    parser = report.small_parser(__doc__ or "")
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="CASE", help="these cases")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/paper_art"), help="where finished parts are kept"
    )
    arguments: argparse.Namespace = parser.parse_args()
    path = arguments.output / "paper_neural_art.json"
    folder = PRETRAINED / BUNDLED
    rule = load_folder(folder) if (folder / "config.json").is_file() else None
    rules = {} if rule is None else {"learned": rule}
    if not arguments.redraw:
        for name in arguments.only or CASES:
            result = contest(name).compare(rules, arguments.work)
            write_json(path, content_of(path, name, result, CASES, rules, arguments.work))
    cases = json.loads(path.read_text(encoding="utf-8"))["cases"]
    for result in cases.values():
        report.show(result)
    caption = "Neural art, median and quartiles over parts of a photograph; rates tuned"
    loss_curves(list(cases.values()), path.with_suffix(".png"), caption)
    gallery(cases, rule, path.with_name("paper_neural_art_gallery.png"))
    print(f"Written: {path}, its figure and paper_neural_art_gallery.png")


if __name__ == "__main__":
    main()
