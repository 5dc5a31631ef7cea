"""The registry of meta-gradient estimators: a new one is one file and one line here."""

from learned_optim.meta_training.estimators.base import Estimate as Estimate
from learned_optim.meta_training.estimators.base import GradientEstimator as GradientEstimator
from learned_optim.meta_training.estimators.es import ES as ES
from learned_optim.meta_training.estimators.nres import NRES as NRES
from learned_optim.meta_training.estimators.pes import PES as PES
from learned_optim.meta_training.estimators.tbptt import TBPTT as TBPTT

ESTIMATORS: dict[str, type[GradientEstimator]] = {
    estimator.name: estimator for estimator in (TBPTT, ES, PES, NRES)
}
