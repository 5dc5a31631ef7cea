"""Tables of which a step touches few rows, and that must grow a hundredfold: word vectors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from learned_optim import LearnedOptimizer, load_rule
from learned_optim.weights import in_memory

WORDS, WIDTH, PAIRS, WRONG, STEPS = 400, 32, 48, 4, 500

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def losses(make: Make) -> Tensor:
    """Skip-grams with negative samples (Mikolov et al., 2013), of words in ten groups, by Zipf."""
    draw = torch.Generator().manual_seed(0)
    often = 1 / torch.arange(1.0, WORDS + 1)
    group = torch.randint(10, (WORDS,), generator=draw)
    table = nn.Parameter((torch.rand(WORDS, WIDTH, generator=draw) - 0.5) / WIDTH)
    context = nn.Parameter(torch.zeros(WORDS, WIDTH))
    optimizer, found = make([table, context]), []
    target = functional.one_hot(torch.zeros(PAIRS, dtype=torch.long), 1 + WRONG).float()
    for _ in range(STEPS):
        word = torch.multinomial(often, PAIRS, replacement=True, generator=draw)
        near = (group[word][:, None] == group).float() * often
        right = torch.multinomial(near, 1, generator=draw)
        wrong = torch.multinomial(often**0.75, PAIRS * WRONG, replacement=True, generator=draw)
        others = torch.cat((right, wrong.view(PAIRS, WRONG)), dim=1)
        scores = (context[others] @ table[word][..., None]).squeeze(-1)
        loss = functional.binary_cross_entropy_with_logits(scores, target) * (1 + WRONG)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.detach())
    return torch.stack(found)


@pytest.mark.parametrize("total_steps", [None, STEPS])
def test_word_vectors_end_near_adams(total_steps: int | None):
    ours = losses(lambda params: LearnedOptimizer(params, total_steps=total_steps))
    adams = losses(lambda params: torch.optim.Adam(params, lr=0.01))
    assert ours[-50:].mean() < 1.2 * adams[-50:].mean() < 0.5 * adams[0]


def test_without_repayment_they_end_above_their_start():
    rule = load_rule("default")
    greedy = in_memory(rule.rule, rule.weights | {"hand.repay": torch.zeros(1)}, name="greedy")
    found = losses(lambda params: LearnedOptimizer(params, rule=greedy))
    assert found[-50:].mean() > found[0]
