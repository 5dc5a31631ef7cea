"""Learned optimizers as a drop-in replacement for torch.optim."""

__version__ = "0.1.0"

from learned_optim.half_state import with_half_state as with_half_state
from learned_optim.hub import load_rule as load_rule
from learned_optim.matrix_stage import without_matrix_stage as without_matrix_stage
from learned_optim.optimizer import LearnedOptimizer as LearnedOptimizer
from learned_optim.weights import LoadedRule as LoadedRule
from learned_optim.weights import WeightsError as WeightsError
from learned_optim.weights import WeightsUnavailable as WeightsUnavailable
