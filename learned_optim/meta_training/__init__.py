"""Meta-training: learn an update rule from a recipe and write its weights."""

from learned_optim.meta_training.checkpoint import CheckpointError as CheckpointError
from learned_optim.meta_training.parallel import DeviceUnavailable as DeviceUnavailable
from learned_optim.meta_training.recipe import Recipe as Recipe
from learned_optim.meta_training.recipe import RecipeError as RecipeError
from learned_optim.meta_training.recipe_file import read_recipe as read_recipe
from learned_optim.meta_training.runner import run as run
