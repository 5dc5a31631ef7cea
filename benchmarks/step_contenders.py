"""Who takes a step in `benchmarks.step_time`, and on which parameters."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from benchmarks.muon import MuonAndAdamW
from learned_optim import LearnedOptimizer, load_rule, without_matrix_stage
from learned_optim.rules import L2L, Default, UpdateRule, Weights
from learned_optim.weights import LoadedRule, in_memory

SIZES = [(2, 20), (1, 8), (1, 4)]  # layers, hidden units
MUON, BLOCKS = "Muon, AdamW on the rest", "torch blocks"
AVX2, HALF, HALF_AVX2 = "C++, AVX2", "C++, state in float16", "C++, AVX2, state in float16"
# The bundled rule, whose idle networks steps do without.
BARE, SHIPPED = "C++ default as shipped, no matrix stage", "C++ default as shipped"
BARE_ALONE, SHIPPED_ALONE = (name.replace("C++", BLOCKS) for name in (BARE, SHIPPED))

_LAYER = [(768, 256), (768,), (256, 256), (256,), (1024, 256), (1024,), (256, 1024), (256,)]
_LAYER += [(256,)] * 4
CASES: dict[str, list[tuple[int, ...]]] = {
    "1M": [(1_000_000,)],
    "5M": [(5_000_000,)],
    # Six encoder layers of width 256, an embedding of 1000, positions and a final norm.
    "transformer": [(1000, 256), (64, 256), (256,), (256,), *_LAYER * 6],
    "mlp": [(128, 784), (128,), (10, 128), (10,)],
    # Small matrices, which `default` sees in eigenbases.
    "width 128": [(128, 128), (128,)] * 12,
    "width 64": [(64, 64), (64,)] * 24,
    "small mlp": [(64, 64), (64,), (64, 64), (64,), (10, 64), (10,)],
    "small": [(64,)] * 76,
}


@contextmanager
def instructions(isa: str | None) -> Iterator[None]:
    """The kernels use at most `isa` meanwhile."""
    if isa is None:
        yield
        return
    before = os.environ.get("LEARNED_OPTIM_ISA")
    os.environ["LEARNED_OPTIM_ISA"] = isa
    try:
        yield
    finally:
        del os.environ["LEARNED_OPTIM_ISA"]
        if before is not None:
            os.environ["LEARNED_OPTIM_ISA"] = before


@dataclass(frozen=True)
class Contender:
    """One way to take a step.

    Attributes:
        name: in tables.
        size: layers and hidden units of the learned rule; None: hand-written.
        make: parameters with gradients -> (a function that takes a step, bytes of its state).
        isa: caps the kernels' instruction set.
        large: whether it can bear millions of parameters in short time and little memory.
    """

    name: str
    size: tuple[int, int] | None
    make: Callable[[list[nn.Parameter]], tuple[Callable[[], object], int]]
    isa: str | None = None
    large: bool = True


def make_params(case: str) -> list[nn.Parameter]:
    """Random parameters of a case, with gradients of all sizes."""
    generator = torch.Generator().manual_seed(0)
    params = []
    for shape in CASES[case]:
        param = nn.Parameter(torch.randn(shape, generator=generator))
        spread = 10 ** (6 * torch.rand(shape, generator=generator) - 6)
        param.grad = torch.randn(shape, generator=generator) * spread
        params.append(param)
    return params


def tensor_bytes(state: object) -> int:
    """Memory of all tensors of more than one element in nested dicts."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size() if state.numel() > 1 else 0
    return sum(map(tensor_bytes, state.values())) if isinstance(state, dict) else 0


def _hand_written(kind: Callable[..., torch.optim.Optimizer], **options: bool):  # noqa: ANN202
    def make(params: list[nn.Parameter]) -> tuple[Callable[[], object], int]:
        optimizer = kind(params, **options)
        optimizer.step()
        return optimizer.step, tensor_bytes(dict(optimizer.state))

    return make


def _muon(params: list[nn.Parameter]) -> tuple[Callable[[], object], int]:
    """Torch's Muon on matrices, AdamW on all others; nothing is an embedding by its name here."""
    named = {str(index): param for index, param in enumerate(params)}
    optimizer = MuonAndAdamW(named, lr=1e-3, foreach=True)
    optimizer.step()
    return optimizer.step, sum(tensor_bytes(dict(part.state)) for part in optimizer.parts)


def drawn(rule: UpdateRule) -> Weights:
    """Weights that move something: drawn heads are next to nothing, or zero."""
    generator = torch.Generator().manual_seed(0)
    weights = rule.init_weights(generator)
    heads = [key for key in weights if "head" in key]
    return weights | {
        key: 0.1 * torch.randn(weights[key].shape, generator=generator) for key in heads
    }


def _learned(rule: LoadedRule, fused: bool):  # noqa: ANN202
    def make(params: list[nn.Parameter]) -> tuple[Callable[[], object], int]:
        optimizer = LearnedOptimizer(params, rule, fused=fused)
        optimizer.step()
        return optimizer.step, tensor_bytes(dict(optimizer.state))

    return make


def _naive(size: tuple[int, int]):  # noqa: ANN202
    """The public implementations' style: nn.LSTMCell over all coordinates of a tensor at once."""

    def make(params: list[nn.Parameter]) -> tuple[Callable[[], object], int]:
        layers, hidden = size
        cells = [nn.LSTMCell(2 if layer == 0 else hidden, hidden) for layer in range(layers)]
        head = nn.Linear(hidden, 1)
        states = [
            [(torch.zeros(p.numel(), hidden), torch.zeros(p.numel(), hidden)) for _ in cells]
            for p in params
        ]

        @torch.no_grad()
        def step() -> None:
            for param, state in zip(params, states, strict=True):
                x = _naive_features(param)
                for layer, cell in enumerate(cells):
                    state[layer] = cell(x, state[layer])
                    x = state[layer][0]
                param.add_(head(x).view_as(param), alpha=1e-3)

        return step, sum(t.numel() * 4 for state in states for pair in state for t in pair)

    return make


def _naive_features(param: nn.Parameter) -> Tensor:
    grad = torch.zeros_like(param) if param.grad is None else param.grad.reshape(-1)
    log = (grad.abs() + 1e-30).log() / 10
    large = log >= -1
    return torch.stack(
        (torch.where(large, log, -1.0), torch.where(large, grad.sign(), grad * 22026.47)), dim=1
    )


def contenders() -> list[Contender]:
    """Everybody, hand-written optimizers first."""
    found = [
        Contender("Adam foreach", None, _hand_written(torch.optim.Adam, foreach=True)),
        Contender("AdamW fused", None, _hand_written(torch.optim.AdamW, fused=True)),
        Contender(MUON, None, _muon),
    ]
    for size in SIZES:
        rule = _timed(L2L(layers=size[0], hidden=size[1]))
        fused = Contender("C++", size, _learned(rule, fused=True))
        found += [fused, replace(fused, name=AVX2, isa="avx2")]
        half = _timed(L2L(layers=size[0], hidden=size[1], state="float16"))
        short = Contender(HALF, size, _learned(half, fused=True))
        found += [short, replace(short, name=HALF_AVX2, isa="avx2")]
        found.append(Contender(BLOCKS, size, _learned(rule, fused=False)))
        if size != (1, 4):
            found.append(Contender("naive nn.LSTMCell", size, _naive(size), large=False))
    for hidden in (8, 4):
        for matrix in (False, True):
            name = "C++ default" + (", matrix stage" if matrix else "")
            rule = _timed(Default(hidden=hidden, matrix=matrix))
            found.append(Contender(name, (1, hidden), _learned(rule, fused=True)))
    bare, shipped = without_matrix_stage(), load_rule("default")
    for rule, name, alone in ((bare, BARE, BARE_ALONE), (shipped, SHIPPED, SHIPPED_ALONE)):
        found.append(Contender(name, None, _learned(rule, fused=True)))
        found.append(Contender(alone, None, _learned(rule, fused=False)))
    return found


def _timed(rule: UpdateRule) -> LoadedRule:
    return in_memory(rule, drawn(rule), name="timed")
