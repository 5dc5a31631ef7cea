"""Several processes: DDP, ZeRO, FSDP2, and the checkpoints that go between them.

Two processes are started once and run every scenario of two_processes.py; the tests look at what
they brought back, mostly beside the same training in this one process.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import two_processes as two
from small_training import assert_near, data, fit, mlp, randn, same, snapshot
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

pytestmark = pytest.mark.filterwarnings("ignore")
CASES = pytest.mark.parametrize("sizes", two.SIZES)
RULES = pytest.mark.parametrize("rule", ["lstm", "normalised", "default"])


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Each process's results."""
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")
    folder = str(tmp_path_factory.mktemp("two"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        spawn(two.worker, args=(folder,), nprocs=two.WORLD)
    files = [f"{folder}/results{rank}.pt" for rank in range(two.WORLD)]
    return [torch.load(file, weights_only=False) for file in files]


def both(ranks: list[dict[str, Any]], name: str) -> list[Any]:
    results = [result[name] for result in ranks]
    for result in results:
        if isinstance(result, str) and result.startswith("FAILED"):
            pytest.fail(result)
    return results


def alone(
    rule: str,
    sizes: tuple[int, ...] = (6, 8, 4, 2),
    steps: int = 5,
    mean: bool = False,
    **options: Any,
) -> list[Tensor]:
    model = mlp(sizes=sizes)
    optimizer = two.optimizer_for(model.parameters(), rule, **options)
    fit(model, optimizer, data(steps, out=sizes[-1]))
    with optimizer.averaged() if mean else nullcontext():
        return snapshot(model)


@pytest.mark.parametrize("name", ["ddp", "zero"])
def test_data_parallel_training_equals_one_process(ranks: list[dict[str, Any]], name: str):
    first, second = both(ranks, name)
    assert same(first, second)
    assert_near(first, alone("lstm", weight_decay=1.0), 1e-5)
    assert not same(first, mlp())


@CASES
@pytest.mark.parametrize("rule", ["lstm", "normalised", "default"])
def test_sharded_training_equals_one_process(ranks: list[dict[str, Any]], rule: str, sizes: str):
    (first, layouts, mean), (second, _, other) = both(ranks, f"train {rule} {sizes}")
    assert same(first, second)
    assert_near(first, alone(rule, two.SIZES[sizes]), 2e-5)
    assert same(mean, other)
    assert_near(mean, alone(rule, two.SIZES[sizes], mean=True), 2e-5)
    assert same(mean, first) == (rule != "default")  # the only one that defers
    found = two.RULES[rule].rule
    rows = {key: found.state_spec[key].rows for key in found.keys_per("coordinate")}
    assert len(layouts) == 6 * len(rows)
    for key, shape, param_shape in layouts:
        assert shape == (rows[key], *param_shape)


def test_all_processes_skip_a_parameter_whose_gradient_is_broken_on_one(
    ranks: list[dict[str, Any]],
):
    for kept, moved, steps, warned in both(ranks, "broken gradient"):
        assert kept
        assert moved == [False, True, True, True, True, True]
        assert steps == [1, 2, 2, 2, 2, 2]
        assert warned == 1


def test_one_collective_a_step_however_many_parameters(ranks: list[dict[str, Any]]):
    assert both(ranks, "collectives") == [1, 1]


@pytest.mark.parametrize("rule", ["normalised", "default"])
def test_other_placements_equal_one_process(ranks: list[dict[str, Any]], rule: str):
    first, second = both(ranks, f"other placements {rule}")
    assert same(first, second)
    param = nn.Parameter(randn((5, 3), 0))
    optimizer = two.optimizer_for([param], rule)
    for k in range(3):
        param.grad = randn((5, 3), 10 + k)
        optimizer.step()
    for found in first:
        assert_near([found], [param], 1e-5)


@CASES
@RULES
def test_full_checkpoints_resume_bit_for_bit_and_continue_in_one_process(
    ranks: list[dict[str, Any]], rule: str, sizes: str
):
    from torch.distributed.checkpoint import state_dict as api

    for run, resumed, _ in both(ranks, f"full {rule} {sizes}"):
        assert same(run, resumed)
    run, _, (weights, state) = both(ranks, f"full {rule} {sizes}")[0]
    model = mlp(9, sizes=two.SIZES[sizes])
    optimizer = two.optimizer_for(model.parameters(), rule)
    api.set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)
    fit(model, optimizer, data(8, out=two.SIZES[sizes][-1])[4:])
    assert_near(model, run, 2e-5)


@CASES
@RULES
def test_sharded_checkpoints_resume_bit_for_bit(ranks: list[dict[str, Any]], rule: str, sizes: str):
    for run, resumed in both(ranks, f"sharded {rule} {sizes}"):
        assert same(run, resumed)
        assert not same(run, mlp(sizes=two.SIZES[sizes]))


def test_plain_state_for_a_sharded_parameter_is_refused(ranks: list[dict[str, Any]]):
    for message in both(ranks, "plain state"):
        assert "load it with torch.distributed.checkpoint" in message


@pytest.mark.parametrize("rule", ["lstm", "default"])
def test_a_checkpoint_goes_on_however_the_parameter_is_cut(ranks: list[dict[str, Any]], rule: str):
    for ends in both(ranks, f"other cut {rule}"):
        for run, resumed in ends:
            assert_near([resumed], [run], 1e-5)


def test_state_of_another_mesh_is_refused(ranks: list[dict[str, Any]]):
    for message in both(ranks, "other mesh"):
        assert "which the parameter is not on" in message


def test_evaluations_at_the_mean_are_seen_by_fsdp2_and_leave_no_trace(ranks: list[dict[str, Any]]):
    pairs = zip(both(ranks, "looked at"), both(ranks, "not looked at"), strict=True)
    for (looked, seen), (alone, _) in pairs:
        assert same(looked, alone)
        looks = [*zip(*[iter(seen)] * 3, strict=True)]
        assert all(torch.equal(usual, again) for usual, _, again in looks)
        # After the first step nothing is owed yet.
        assert not any(torch.equal(usual, mean) for usual, mean, _ in looks[1:])
