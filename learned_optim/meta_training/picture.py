"""The picture of a meta-training run."""

from __future__ import annotations

import io


def draw(history: list[dict[str, float]], name: str) -> bytes:
    """Score and each family's value over the outer steps, as the bytes of a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    steps = [row["step"] for row in history]
    values = sorted({key for row in history for key in row if key.endswith("/value")})
    for key in values if len(values) > 1 else []:
        curve = [row.get(key, float("nan")) for row in history]
        axes.plot(steps, curve, lw=1, alpha=0.6, label=key.removesuffix("/value"))
    axes.plot(steps, [row["score"] for row in history], color="black", lw=2, label="score")
    best = min(history, key=lambda row: row["score"])
    axes.plot(best["step"], best["score"], "o", color="tab:red", label=f"best {best['score']:.4g}")
    if min(row["score"] for row in history) > 0:
        axes.set_yscale("log")
    axes.set(xlabel="outer step", ylabel="validation score", title=name)
    axes.grid(alpha=0.3)
    figure.legend(fontsize=7, ncols=4, loc="outside lower center")
    stream = io.BytesIO()
    figure.savefig(stream, dpi=130)
    return stream.getvalue()
