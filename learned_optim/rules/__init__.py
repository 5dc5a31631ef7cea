"""The registry of update rules: a new rule is one file and one line here."""

from learned_optim.rules.adam import Adam as Adam
from learned_optim.rules.base import Clock as Clock
from learned_optim.rules.base import Coordinates as Coordinates
from learned_optim.rules.base import State as State
from learned_optim.rules.base import StateSpec as StateSpec
from learned_optim.rules.base import UpdateRule as UpdateRule
from learned_optim.rules.base import Weights as Weights
from learned_optim.rules.base import compute_dtype as compute_dtype
from learned_optim.rules.by_layer import PARTS as PARTS
from learned_optim.rules.by_layer import ByLayer as ByLayer
from learned_optim.rules.default import Default as Default
from learned_optim.rules.l2l import L2L as L2L
from learned_optim.rules.layered import Layered as Layered
from learned_optim.rules.learnable_sgd import LearnableSGD as LearnableSGD

RULES: dict[str, type[UpdateRule]] = {
    rule.name: rule for rule in (L2L, ByLayer, LearnableSGD, Adam, Layered, Default)
}
