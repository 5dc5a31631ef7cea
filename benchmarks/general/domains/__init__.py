"""Kinds of problem that no list of families has, one a file: other losses, other gradients.

Nothing of `default` was chosen by them, but for word vectors, which showed a weakness and had a say
in what mended it (docs/diary_default.md). Each is as its paper has it, but small.
"""

from benchmarks.general.domains.adding import Adding
from benchmarks.general.domains.bandit import Bandit
from benchmarks.general.domains.burgers import Burgers
from benchmarks.general.domains.contrastive import Contrastive
from benchmarks.general.domains.diffusion import Diffusion
from benchmarks.general.domains.experts import Experts
from benchmarks.general.domains.fixed import Fixed
from benchmarks.general.domains.graph import Graph
from benchmarks.general.domains.label_noise import LabelNoise
from benchmarks.general.domains.photograph import Photograph
from benchmarks.general.domains.word_vectors import WordVectors

__all__ = [
    "Adding",
    "Bandit",
    "Burgers",
    "Contrastive",
    "Diffusion",
    "Experts",
    "Fixed",
    "Graph",
    "LabelNoise",
    "Photograph",
    "WordVectors",
]
