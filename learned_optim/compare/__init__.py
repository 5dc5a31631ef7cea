"""`learned-optim compare`: LearnedOptimizer and a tuned Adam on a model of the user's own."""

from learned_optim.compare.contest import CompareConfig as CompareConfig
from learned_optim.compare.contest import run_compare as run_compare
from learned_optim.compare.report import Report as Report
from learned_optim.factory import FactoryError as FactoryError
from learned_optim.factory import Problem as Problem
