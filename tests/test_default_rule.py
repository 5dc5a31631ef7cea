"""The practical rule: the hand rule before it has learned, and bounds whatever it has learned."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from small_training import awake, loaded, make, parameters, randn, snapshot
from torch import Tensor, nn

from learned_optim import LearnedOptimizer, LoadedRule
from learned_optim.bases import PERIOD, RIDGE
from learned_optim.matrices import QUINTICS, as_matrix
from learned_optim.meta_training.baseline import loss_curve
from learned_optim.meta_training.unroll import (
    Layout,
    Runs,
    apply_rule,
    initial_state,
    make_clock,
)
from learned_optim.rules import Clock, Coordinates, Default, hand
from learned_optim.rules.default import CLIP, FACTS, LARGEST, OWED
from learned_optim.rules.feedback import FASTEST, SLOWEST, Feedback, feedback, repaid
from learned_optim.rules.hand import HAND, HAND_SCALE
from learned_optim.tasks import Quadratic
from learned_optim.weights import in_memory

SHAPES = ((6, 4), (5,), (3, 2, 2, 2), (), (1,), (1, 7), (4, 9), (2, 12))
HORIZONS = pytest.mark.parametrize("total_steps", [None, 20, 150])
RULE = Default(hidden=3, controller=5)


def wild(rule: Default, seed: int = 0, size: float = 100.0) -> LoadedRule:
    """Weights of any size, heads included; the hand rule's constants as they are."""
    drawn = rule.init_weights(torch.Generator().manual_seed(seed))
    networks = [key for key in drawn if not key.startswith("hand.")]
    # The same networks however many constants there are; 13 as there were when tests were written.
    weights = drawn | {
        key: size * randn(drawn[key].shape, seed + index)
        for index, key in enumerate(networks, start=13)
    }
    return in_memory(rule, weights, name="wild")


def hand_length(param: Tensor, step: int, total_steps: int | None) -> float:
    """The hand rule's length of step number `step` before the pace, written anew."""
    kind = 0 if param.dim() > 1 else 1
    return math.exp(HAND["log_step"][kind]) * scale_of(param) * hand_schedule(step, total_steps)


def scale_of(param: Tensor) -> float:
    """What lengths are relative to, written anew."""
    fan_in = as_matrix(tuple(param.shape))[1] if param.dim() > 1 else 1
    floor = math.exp(HAND["log_floor"][0 if param.dim() > 1 else 1]) / math.sqrt(fan_in)
    return max(param.square().mean().sqrt().item(), floor)


def hand_schedule(step: int, total_steps: int | None) -> float:
    """What all lengths are multiplied by at step number `step`, written anew."""
    rise = math.exp(HAND["log_warmup"][0])
    warmup = min(1.0, step / (rise if total_steps is None else min(rise, max(1, total_steps / 10))))
    tau = math.exp(HAND["log_tau"][0 if total_steps is None else 1])
    fall = (1 + step / tau) ** -HAND["power"][0]
    if total_steps is not None:
        fall *= ((total_steps - step + 1) / total_steps) ** HAND["power"][1]
        fall *= max(1.0, 300 / max(total_steps, 5)) ** 0.5
    return warmup * fall


@dataclass
class Heard:
    """The feedback of a tensor, written anew."""

    pace: float = 0.0
    agreement: float = 0.0
    scale: float = 0.0
    outlook: float = 0.0
    largest: float = 0.0

    def hear(
        self,
        grad: Tensor,
        m: Tensor,
        v_hat: Tensor,
        step: int,
        total_steps: int | None,
        scale: float,
        downhill: float,
    ) -> None:
        """The gradient of step number `step`, the momentum before it, the mean square with it.

        `downhill` is `cosine` of what is owed and minus the gradient.
        """
        if not grad.any() or not m.any():
            return
        turned = cosine(grad, m)
        self.agreement = 0.9 * self.agreement + 0.1 * turned
        self.outlook = 0.95 * self.outlook + 0.05 * downhill
        off = self.agreement - 0.1 * HAND["aim"][0 if total_steps is None else 1]
        band = math.exp(HAND["log_band"][0])
        share = min(max(-self.outlook / 0.03, 0.0), 1.0)
        beyond = math.copysign(max(abs(off) - band, 0.0), off)
        if off < 0:
            beyond = share * beyond + (1 - share) * min(self.agreement + 0.65, 0.0)
        grown = math.log(max(1.0, scale / (self.scale or scale)))
        if self.pace > math.log(2):
            self.pace = max(math.log(2), self.pace - grown)
        self.scale = scale
        rate = math.exp(HAND["log_rate"][0 if grad.dim() > 1 else 1]) * min(1.0, step / 100)
        rate *= 1.0 if total_steps is None else max(0.0, 1 - step / total_steps)
        away = turned < -0.5 and grad.square().mean() > 9 * v_hat.mean()
        moved = -HAND["brake"][0] if away else rate * beyond
        rms = grad.square().mean().sqrt().item()
        grown = min(rms, 1.1 * self.largest) if self.largest else rms
        self.largest = max(self.largest * (1 - 0.5 / step), grown)
        now = max(grad.square().mean(), m.square().mean()).sqrt().item()
        moved -= HAND["brake"][0] * 0.1 * min(max(math.log(1e-4 * self.largest / now), 0.0), 3.0)
        self.pace = min(max(self.pace + moved, SLOWEST), FASTEST)


def cosine(a: Tensor, b: Tensor) -> float:
    """0 if one is zero."""
    return torch.cosine_similarity(a.flatten(), b.flatten(), dim=0, eps=1e-30).item()


class Seen:
    """The eigenbases of one block, written anew."""

    def __init__(self, rows: int, columns: int) -> None:
        self.sides = [torch.eye(size, dtype=torch.float64) for size in (rows, columns)]
        self.values = [torch.zeros(size, dtype=torch.float64) for size in (rows, columns)]

    def see(self, grad: Tensor, m: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Gradient and momentum in the bases, after what step number `step` does to them."""
        shape = [len(side) for side in self.sides]
        left, right = self.sides
        grad, m = left.T @ grad.reshape(shape) @ right, m.reshape(shape)
        if step == 1 or step % PERIOD == 0:
            x = grad / grad.square().mean().sqrt()
            turns = []
            for k, news in enumerate((x @ x.T, x.T @ x)):
                covariance = (29 / 30) * self.values[k].diag() + news / 30
                covariance += RIDGE * (1 + news.trace() / shape[k]) * torch.eye(shape[k])
                turns.append(z := gram_schmidt(covariance))
                self.values[k] = (z.T @ covariance @ z).diagonal()
                self.sides[k] = self.sides[k] @ z
            grad, m = (turns[0].T @ y @ turns[1] for y in (grad, m))
        return grad, m

    def unsee(self, step: Tensor) -> Tensor:
        left, right = self.sides
        return (left @ step.reshape(len(left), -1) @ right.T).view(step.shape)


def gram_schmidt(columns: Tensor) -> Tensor:
    """Made orthonormal one after the other."""
    found: list[Tensor] = []
    for column in columns.T:
        for _ in range(2):  # once more, for what rounding leaves
            column = column - sum(((unit @ column) * unit for unit in found), torch.zeros(()))
        found.append(column / column.norm())
    return torch.stack(found, dim=1)


def straightened(step: Tensor) -> Tensor:
    """The iterations on the singular values themselves."""
    u, s, v = torch.linalg.svd(step, full_matrices=False)
    s = s / s.square().sum().sqrt()
    for a, b, c in QUINTICS:
        s = a * s + b * s**3 + c * s**5
    return u @ s.diag() @ v


@pytest.mark.parametrize("total_steps", [None, 50_000])
def test_after_a_thousand_steps_the_length_falls_no_faster_than_their_root(total_steps):
    rule = Default()
    weights = rule.init_weights(torch.Generator().manual_seed(0))
    weights["hand.power"] = torch.tensor([2.0, 0.0]) / HAND_SCALE
    weights["hand.log_tau"] = torch.tensor([1.0, 1.0]).log() / HAND_SCALE
    facts = dict(zip(FACTS, torch.tensor(rule.describe((8, 8))), strict=True))

    def length(step: int) -> float:
        total = None if total_steps is None else torch.tensor([float(total_steps)])
        schedule = hand.hand_schedule(Clock(torch.tensor([float(step)]), total), weights)
        return hand.hand_length(facts, schedule, weights).item()

    assert length(1000) / length(500) == pytest.approx((501 / 1001) ** 2, rel=1e-4)
    assert length(4000) / length(1000) == pytest.approx((1001 / 4001) ** 0.5, rel=1e-4)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def hand_steps(param: Tensor, grads: list[Tensor], total_steps: int | None) -> Tensor:
    """The hand rule written anew; where it takes a tensor."""
    beta1, beta2, share = (sigmoid(HAND[k][0]) for k in ("logit_beta1", "logit_beta2", "blend"))
    m, v = torch.zeros_like(param), torch.zeros_like(param)
    whole, mean = param, param  # z and x of `deferral`
    waits, pace = sigmoid(HAND["logit_share"][0]), math.exp(HAND["log_due"][0])
    if total_steps is not None:
        waits *= min(max(math.log2(total_steps / 100), 0), 1)
    heard, seen, dead = Heard(), None, 1e-12
    if param.dim() > 1:
        short, long = sorted(as_matrix(tuple(param.shape)))
        if short > 1 and long <= 5 * short:
            seen, dead = Seen(*as_matrix(tuple(param.shape))), 900 * 1e-12
    for k, grad in enumerate(grads, start=1):
        downhill = -cosine(grad, whole - mean)
        if seen is not None:
            grad, m = (x.view(param.shape) for x in seen.see(grad, m, k))
        clip = 1.0
        if k > 10:
            before = (v / (1 - beta2 ** (k - 1))).mean().sqrt()
            most = math.exp(HAND["log_clip"][0]) * before
            clip = min(1.0, (most / grad.square().mean().sqrt()).item())
        v = beta2 * v + (1 - beta2) * grad**2
        v_hat = v / (1 - beta2**k)
        heard.hear(grad, m, v_hat, k, total_steps, scale_of(param), downhill)
        m = beta1 * m + (1 - beta1) * clip * grad
        direction = m / (1 - beta1**k) / (v_hat + dead * v_hat.mean()).sqrt()
        length = hand_length(param, k, total_steps) * math.exp(heard.pace)
        step = -length * direction.clamp(-4, 4)
        if seen is not None:
            step = seen.unsee(step)
        elif param.dim() > 1 and min(as_matrix(tuple(param.shape))) > 1:
            matrix = step.reshape(as_matrix(tuple(param.shape)))
            rms = length * (matrix.square().mean() / length**2 + 1e-12).sqrt()
            size = math.exp(HAND["log_gain"][0]) * rms * math.sqrt(max(matrix.shape))
            step = (1 - share) * step + share * size * straightened(matrix).view(step.shape)
        whole = whole + step
        mean = mean + pace / (k + pace - 1) * (whole - mean)
        param = (1 - waits) * whole + waits * mean
    return param


@HORIZONS
def test_as_drawn_it_is_the_hand_rule(total_steps: int | None):
    params = parameters(SHAPES, torch.float64)
    params += [nn.Parameter(torch.zeros(4, 3).double()), nn.Parameter(torch.zeros(3).double())]
    grads = [
        [randn(p.shape, 100 * k + i).double() for k in range(14)] for i, p in enumerate(params)
    ]
    for of_param in grads:
        of_param[11] *= 20  # is clipped
    expected = [hand_steps(p.detach(), g, total_steps) for p, g in zip(params, grads, strict=True)]
    optimizer = make(params, loaded(RULE), total_steps=total_steps)
    for k in range(14):
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad[k].clone()
        optimizer.step()
    for param, value in zip(params, expected, strict=True):
        # As near as the constants are, which are stored in float32.
        torch.testing.assert_close(param.detach(), value, rtol=1e-7, atol=5e-8)


def downhill(optimizer: LearnedOptimizer, param: Tensor) -> float:
    """Before a step: `cosine` of what is owed and minus the gradient."""
    state = optimizer.state.get(param)
    assert param.grad is not None
    return -cosine(param.grad, state["moments"][OWED]) if state else 0.0


@pytest.mark.parametrize("total_steps", [None, 2000])
@pytest.mark.parametrize("shape", [(12,), (4, 3)])
def test_the_pace_falls_only_where_what_is_owed_leads_uphill(shape, total_steps: int | None):
    """To and fro across a valley; along it first always the same way, then back."""
    param = nn.Parameter(torch.ones(shape))
    optimizer = make([param], loaded(RULE), total_steps=total_steps)
    across = torch.zeros(12)
    across[:6] = 1.0
    paces, outlooks = [], []
    for k in range(450):
        along = 0.3 * (1 - across) * (1 if k < 150 else -1)
        param.grad = ((-1) ** k * across + along).view(shape)
        optimizer.step()
        param.data.fill_(1.0)
        _, pace, agreement, _, outlook, _ = optimizer.state[param]["gauge"].tolist()
        paces.append(pace)
        outlooks.append(outlook)
        assert k < 20 or -0.6 < agreement < -0.2  # far below the aim throughout
    assert paces[149] == pytest.approx(paces[20], abs=1e-6)
    assert min(outlooks[150:]) < -0.03  # until the way back has made up for the way there
    assert outlooks[300] > 0
    assert paces[300] < paces[149] - 0.25
    assert paces[449] == pytest.approx(paces[300], abs=1e-6)


@pytest.mark.parametrize(("turning", "bound"), [(False, FASTEST), (True, SLOWEST)])
def test_the_pace_rises_while_gradients_agree_and_falls_while_they_turn(
    turning: bool, bound: float
):
    param = nn.Parameter(torch.ones(4, 3))
    optimizer = make([param], loaded(RULE))
    paces, ways = [], []
    for k in range(1500):
        param.grad = torch.full((4, 3), -1.0 if turning and k % 2 else 1.0)
        ways.append(downhill(optimizer, param))
        optimizer.step()
        param.data.fill_(1.0)  # what a scale grows by would be repaid
        paces.append(optimizer.state[param]["gauge"][1].item())
    expected = Heard()
    m = torch.zeros(4, 3)
    beta1 = sigmoid(HAND["logit_beta1"][0])
    for k in range(150):
        grad = torch.full((4, 3), -1.0 if turning and k % 2 else 1.0)
        expected.hear(grad, m, torch.ones(4, 3), k + 1, None, 1.0, ways[k])
        m = beta1 * m + (1 - beta1) * grad
        assert paces[k] == pytest.approx(expected.pace, abs=1e-5)
    assert paces[-1] == bound


@pytest.mark.parametrize("growth", [1.0, 1.02, 1.2, 0.9])
def test_what_a_tensor_grows_by_is_taken_off_a_high_pace(growth: float):
    param = nn.Parameter(torch.ones(4, 3))
    optimizer = make([param], loaded(RULE))
    expected, m, beta1 = Heard(), torch.zeros(4, 3), sigmoid(HAND["logit_beta1"][0])
    paces, scale = [], 1.0
    for step in range(1, 201):
        grad = torch.ones(4, 3)
        if step > 80:  # each coordinate in its turn: none along the momentum
            grad = torch.eye(12)[step % 12].view(4, 3)
        scale *= growth if step > 110 else 1.0
        param.data.fill_(scale)
        param.grad = grad
        expected.hear(grad, m, torch.ones(4, 3), step, None, scale, downhill(optimizer, param))
        m = beta1 * m + (1 - beta1) * grad
        optimizer.step()
        paces.append(optimizer.state[param]["gauge"][1].item())
        assert paces[-1] == pytest.approx(expected.pace, abs=1e-3), step
    assert paces[80] > 1.5
    left = math.log(2) if growth > 1 else paces[110]
    assert paces[-1] == pytest.approx(left, abs=0.05)


@pytest.mark.parametrize(
    ("pace", "scale", "repay", "expected"),
    [
        (2.0, math.exp(0.5), 1.0, 1.5),
        (2.0, math.exp(5.0), 1.0, math.log(2)),  # no further than what is common
        (2.0, math.exp(-0.5), 1.0, 2.0),
        (0.5, math.exp(0.5), 1.0, 0.5),
        (2.0, math.exp(0.5), -1.0, 2.0),
    ],
)
def test_repaying_never_raises_a_pace(pace: float, scale: float, repay: float, expected: float):
    before = Feedback(torch.tensor([pace]), *torch.tensor([[0.0], [1.0], [0.0], [1.0]]))
    weights = hand.hand_weights() | {"hand.repay": torch.tensor([repay / HAND_SCALE])}
    found = repaid(before, torch.tensor([scale]), weights)
    torch.testing.assert_close(found, torch.tensor([expected]))


@pytest.mark.parametrize(("g2", "m2"), [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_a_gradient_or_a_momentum_of_zero_says_nothing(g2: float, m2: float):
    before = Feedback(*(torch.tensor([x]) for x in (0.5, 0.8, 2.0, 0.3, 7.0)))
    means = {"g2": g2, "m2": m2, "gm": 0.0, "v": 1.0, "theta2": 1.0, "go": 0.0, "o2": 1.0}
    after = feedback(
        before,
        {key: torch.tensor([value]) for key, value in means.items()},
        mean_v=torch.ones(1),
        beta2=torch.tensor([0.95]),
        more_aim=torch.zeros(1),
        scale=torch.tensor([3.0]),
        facts={"is_matrix": torch.zeros(1)},
        clock=Clock(torch.tensor([5.0]), None),
        weights=hand.hand_weights(),
    )
    assert after == before


@pytest.mark.parametrize(("size", "brakes"), [(-6.0, True), (6.0, False), (-2.0, False)])
def test_a_gradient_that_is_large_and_turns_back_halves_the_pace_at_once(size, brakes):
    """After thirty like gradients, one of another size and direction; then the pace by the rule."""
    param = nn.Parameter(torch.ones(4, 3))
    optimizer = make([param], loaded(RULE))
    expected, m, v = Heard(), torch.zeros(4, 3), torch.zeros(4, 3)
    beta1, beta2 = (sigmoid(HAND[key][0]) for key in ("logit_beta1", "logit_beta2"))
    paces = []
    for k in range(1, 32):
        param.grad = torch.full((4, 3), 1.0 if k < 31 else size)
        v = beta2 * v + (1 - beta2) * param.grad**2
        way = downhill(optimizer, param)
        expected.hear(param.grad, m, v / (1 - beta2**k), k, None, scale_of(param.detach()), way)
        m = beta1 * m + (1 - beta1) * param.grad
        optimizer.step()
        paces.append(optimizer.state[param]["gauge"][1].item())
        assert paces[-1] == pytest.approx(expected.pace, abs=1e-5)
    assert (paces[-1] < paces[-2] - 0.9) == brakes


@pytest.mark.parametrize(
    ("total_steps", "at", "cosine", "share"),
    [
        (20, 2, 0.0, 1.0),
        (100, 10, 0.0, 1.0),
        (150, 3, 0.0, math.log2(200 / 150)),
        (100, 11, 0.0, 0.0),  # no longer among the first
        (100, 3, 1.0, 0.0),  # grown, but along the momentum
        (200, 3, 0.0, 0.0),
        (5000, 3, 0.0, 0.0),
        (None, 3, 0.0, 0.0),
    ],
)
def test_a_short_run_brakes_where_its_first_gradients_grow_without_agreeing(
    total_steps, at, cosine, share
):
    param = nn.Parameter(torch.ones(12))
    optimizer = make([param], loaded(RULE), total_steps=total_steps)
    usual, other = torch.zeros(2, 12)
    usual[:6], other[6:] = 1.0, 1.0
    paces = []
    for k in range(1, at + 1):
        param.grad = usual if k < at else 3 * (cosine * usual + (1 - cosine) * other)
        optimizer.step()
        paces.append(optimizer.state[param]["gauge"][1].item())
    fall = paces[-2] - paces[-1]
    assert fall == pytest.approx(share * HAND["brake"][0], abs=1e-5) if share else fall <= 0


def test_no_noiseless_quadratic_runs_away():
    """Feedback alone let one in ten rise to ten times its start, and more, on the way."""
    task = Quadratic().sample(torch.Generator())
    rule = Default()
    weights = rule.init_weights(torch.Generator().manual_seed(0))
    losses = loss_curve(rule, weights, Runs(task, list(range(256))), 300, None)
    assert bool((losses < 10 * losses[0]).all())
    assert float((losses[-1] / losses[0]).median()) < 0.01


@pytest.mark.parametrize("fused", [None, False])
def test_what_is_learned_wholly_is_not_lost_to_rounding(fused: bool | None):
    """Beyond a loss of 1e-7 a classifier's gradients are rounding: the pace must not stay high."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(96, 12, generator=draw)
    y = (x @ torch.randn(12, 4, generator=draw)).argmax(1)
    shapes = ((24, 12), (24,), (4, 24), (4,))
    params = [nn.Parameter(0.3 * torch.randn(shape, generator=draw)) for shape in shapes]
    optimizer, losses = LearnedOptimizer(params, loaded(RULE), fused=fused), []
    for _ in range(800):
        hidden = torch.relu(nn.functional.linear(x, *params[:2]))
        loss = nn.functional.cross_entropy(nn.functional.linear(hidden, *params[2:]), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    learned = next(k for k, loss in enumerate(losses) if loss < 1e-6)
    assert learned < 400
    assert max(losses[learned:]) < 1e-5  # it went to 1 and more
    assert max(losses[-50:]) < 1e-7


@pytest.mark.parametrize("fused", [None, False])
def test_a_gradient_that_explodes_once_does_not_make_rounding_of_those_that_follow(
    fused: bool | None,
):
    param = nn.Parameter(randn((30,), 0))
    optimizer = make([param], loaded(RULE), fused=fused)
    for k in range(300):
        param.grad = (1e8 if k == 150 else 1.0) * randn((30,), k + 1)
        optimizer.step()
    assert optimizer.state[param]["gauge"][1].item() > -1


def test_gradients_of_zero_leave_the_pace_as_it_is():
    param = nn.Parameter(torch.ones(4, 3))
    optimizer = make([param], loaded(RULE))
    for _ in range(10):
        param.grad = torch.ones(4, 3)
        optimizer.step()
    pace = optimizer.state[param]["gauge"][1].item()
    for _ in range(10):
        param.grad = torch.zeros(4, 3)
        optimizer.step()
    assert pace > 0
    assert optimizer.state[param]["gauge"][1].item() == pace


@HORIZONS
def test_the_optimizer_takes_the_steps_that_meta_training_takes(total_steps: int | None):
    source = wild(RULE, size=0.5)
    weights = {key: value.double() for key, value in source.weights.items()}
    params = parameters(SHAPES, torch.float64)
    named = {str(i): p.detach().clone()[None] for i, p in enumerate(params)}
    layout = Layout(RULE, named, lead=1)
    theta = layout.join(named)
    state = initial_state(RULE, theta, layout)
    optimizer = make(params, source, total_steps=total_steps)
    for k in range(1, 6):
        for index, param in enumerate(params):
            param.grad = randn(param.shape, 100 * k + index).double()
        grad = layout.join({str(i): p.grad[None] for i, p in enumerate(params)})  # type: ignore[index]
        clock = make_clock(k, total_steps, layout, theta)
        step, state = apply_rule(RULE, weights, layout, Coordinates(grad, theta), state, clock)
        theta = theta + step
        optimizer.step()
    for index, value in layout.split(theta).items():
        found = params[int(index)].detach()
        torch.testing.assert_close(found, value[0], rtol=1e-9, atol=1e-12)


@HORIZONS
def test_with_the_sign_of_a_coordinate_flips_its_step_and_nothing_else(total_steps: int | None):
    source = wild(RULE, size=0.5)
    starts = [randn((40,), 1).double(), randn((30,), 2).double()]
    signs = [torch.where(randn(p.shape, 7 + i) > 0, 1.0, -1.0) for i, p in enumerate(starts)]
    ends = []
    for flips in ([torch.ones_like(sign) for sign in signs], signs):
        params = [nn.Parameter(p * flip) for p, flip in zip(starts, flips, strict=True)]
        optimizer = make(params, source, total_steps=total_steps)
        for k in range(6):
            for index, (param, flip) in enumerate(zip(params, flips, strict=True)):
                param.grad = randn(param.shape, 100 * k + index).double() * flip
                param.grad[:5] = 0  # never touched
            optimizer.step()
        ends.append([p.detach() * flip for p, flip in zip(params, flips, strict=True)])
    for plain, flipped, begin in zip(*ends, starts, strict=True):
        torch.testing.assert_close(flipped, plain, rtol=1e-12, atol=0)
        assert torch.equal(plain[:5], begin[:5])


@HORIZONS
@pytest.mark.parametrize("seed", range(3))
def test_no_weights_make_a_step_longer_than_the_bound(total_steps: int | None, seed: int):
    longest = 0.0
    loud = wild(RULE, seed)
    loud.weights["tensor.head.b"][0] = 1e6
    for source, bound in ((loud, LARGEST), (loaded(RULE), CLIP)):
        params = parameters(SHAPES)
        optimizer = make(params, source, total_steps=total_steps)
        for k in range(1, 16):
            before = snapshot(params)
            for index, param in enumerate(params):
                param.grad = randn(param.shape, 100 * k + index) ** 3
            optimizer.step()
            for param, old in zip(params, before, strict=True):
                rms = (param.detach() - old).square().mean().sqrt().item()
                pace = optimizer.state[param]["gauge"][1].item()
                assert SLOWEST <= pace <= FASTEST
                share = rms / (math.exp(pace) * hand_length(old, k, total_steps))
                assert share < bound * 1.001
                longest = max(longest, share)
    assert longest > CLIP, "the weights here do not come near the bound"


HOSTILE = {
    "zero": [0.0],
    "least": [1e-45],
    "tiny": [1e-30],
    "huge": [1e30],
    "greatest": [3e38],
    "alternating": [1e30, 1e-30],
    "jumping": [1e8, 1e8, 1e-8],
    "zero then huge": [0.0, 0.0, 1e30],
}


@pytest.mark.parametrize("sizes", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("kind", ["hand", "wild"])
def test_gradients_of_any_size_leave_all_finite_and_training_goes_on(kind: str, sizes: list[float]):
    params = parameters(SHAPES)
    optimizer = make(params, wild(RULE) if kind == "wild" else loaded(RULE))
    for k in range(6):
        before = snapshot(params)
        for index, param in enumerate(params):
            # One sign and one size, and one coordinate far from all others.
            param.grad = sizes[k % len(sizes)] * randn(param.shape, 10 * k + index).clamp(-1, 1)
            param.grad.view(-1)[0] *= 1e-12
        optimizer.step()
        for old, new in zip(before, snapshot(params), strict=True):
            rms = (new - old).square().mean().sqrt().item()
            assert rms < 1.001 * LARGEST * math.exp(FASTEST) * hand_length(old, k + 1, None)
    for state in optimizer.state.values():
        assert all(bool(value.isfinite().all()) for value in state.values())
    before = snapshot(params)
    for index, param in enumerate(params):
        param.grad = max(*sizes, 1e-3) * randn(param.shape, index).clamp(-1, 1)
    optimizer.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, snapshot(params), strict=True)]
    assert all(moved)


def test_a_tensor_without_a_gradient_signal_rests_under_the_hand_rule():
    params = parameters(SHAPES)
    before = snapshot(params)
    optimizer = make(params, loaded(RULE))
    for _ in range(3):
        for param in params:
            param.grad = torch.zeros_like(param)
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(params), strict=True))


def trained(scale: float) -> list[Tensor]:
    params = parameters(((6, 4), (4,)))
    optimizer = make(params, wild(RULE, size=0.5), total_steps=30)
    for k in range(12):
        optimizer.zero_grad()
        x = randn((16, 6), k)
        loss = (torch.tanh(x @ params[0] + params[1]) - x[:, :4]).square().mean()
        (scale * loss).backward()
        optimizer.step()
    return snapshot(params)


@pytest.mark.parametrize("scale", [1e-8, 2.0**-26, 2.0**26, 1e8])
def test_the_scale_of_the_loss_does_not_matter(scale: float):
    start = parameters(((6, 4), (4,)))
    for found, expected, first in zip(trained(scale), trained(1.0), start, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
        assert (expected - first).abs().mean() > 1e-2


def test_the_state_does_not_grow_and_is_small():
    params = parameters(((40, 25),))
    optimizer = make(params, awake(Default()))
    sizes = []
    for k in range(4):
        params[0].grad = randn((40, 25), k)
        optimizer.step()
        state = optimizer.state[params[0]].values()
        sizes.append(sum(value.numel() * value.element_size() for value in state))
    assert len(set(sizes)) == 1
    # Moments and what is owed 12, a cell of 4 units 16; bases of 40 and 25 for 1000 numbers 8.9.
    assert sizes[0] <= 37.5 * 1000


def test_a_cell_that_counts_up_stays_in_the_range_of_halves():
    source = awake(RULE)
    gates = source.weights["coordinate.b"]
    gates.fill_(50.0)
    source.weights["coordinate.w_ih"].zero_()
    source.weights["coordinate.w_hh"].zero_()
    param = parameters(((5,),))[0]
    optimizer = make([param], source)
    for k in range(6):
        param.grad = randn((5,), k)
        optimizer.step()
        if not k:
            optimizer.state[param]["cell"][RULE.hidden :] = 2045.0
    cell = optimizer.state[param]["cell"]
    assert cell.dtype == torch.float16
    assert (cell[RULE.hidden :] == 2048).all()


@pytest.mark.parametrize("total", [None, 200.0, 1000.0])
def test_no_power_makes_the_length_grow_with_time(total: float | None):
    steps = torch.tensor([50.0, 100.0, 1000.0, 100_000.0])
    weights = hand.hand_weights() | {"hand.power": torch.tensor([-1.0, -1.0])}
    clock = Clock(steps, None if total is None else torch.full_like(steps, total))
    lengths = hand.hand_schedule(clock, weights)
    assert (lengths.diff() <= 0).all()
    assert lengths.isfinite().all()


def lengths_at(steps: list[float], totals: list[float]) -> Tensor:
    """The schedule, each step of a run of its own horizon."""
    clock = Clock(torch.tensor(steps), torch.tensor(totals))
    return hand.hand_schedule(clock, hand.hand_weights())


def test_a_run_that_goes_on_beyond_its_horizon_keeps_the_last_length():
    lengths = lengths_at([200.0, 201.0, 210.0], [200.0] * 3)
    assert lengths[0] > 0
    torch.testing.assert_close(lengths[1:], lengths[:1].expand(2), rtol=1e-2, atol=0)


def test_runs_of_up_to_five_steps_take_steps_of_one_length():
    found = lengths_at([1.0, 1.0, 1.0], [1.0, 2.0, 5.0])
    torch.testing.assert_close(found, torch.full((3,), 60**0.5), rtol=1e-2, atol=0)


@pytest.mark.parametrize("field", ["hidden", "controller", "matrix"])
def test_a_level_can_be_left_out(field: str):
    rule = Default(**{"hidden": 2, "controller": 2, field: 0 if field != "matrix" else False})
    params = parameters(SHAPES)
    before = snapshot(params)
    optimizer = make(params, awake(rule))
    for index, param in enumerate(params):
        param.grad = randn(param.shape, index)
    optimizer.step()
    assert not any(torch.equal(a, b) for a, b in zip(before, snapshot(params), strict=True))
    levels = {key.split(".")[0] for key in rule.weight_shapes()}
    assert levels == {"hand", "coordinate", "tensor"} - {
        {"hidden": "coordinate", "controller": "tensor", "matrix": ""}[field]
    }
