"""`learned-optim demo`: a learned rule beside Adam on scikit-learn's digits."""

from learned_optim.demo.compare import DemoConfig as DemoConfig
from learned_optim.demo.compare import run_demo as run_demo
from learned_optim.demo.report import Report as Report
