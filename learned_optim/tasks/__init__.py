"""The registry of task families: a new family is one file and one line here."""

from learned_optim.tasks.autoencoder import Autoencoder as Autoencoder
from learned_optim.tasks.base import Batch as Batch
from learned_optim.tasks.base import Params as Params
from learned_optim.tasks.base import Split as Split
from learned_optim.tasks.base import Task as Task
from learned_optim.tasks.base import TaskFamily as TaskFamily
from learned_optim.tasks.cifar_conv import CifarConv as CifarConv
from learned_optim.tasks.cnn import CNN as CNN
from learned_optim.tasks.differential_equation import DifferentialEquation as DifferentialEquation
from learned_optim.tasks.finite_regression import FiniteRegression as FiniteRegression
from learned_optim.tasks.ill_conditioned_quadratic import (
    IllConditionedQuadratic as IllConditionedQuadratic,
)
from learned_optim.tasks.logistic_regression import LogisticRegression as LogisticRegression
from learned_optim.tasks.matrix_factorisation import MatrixFactorisation as MatrixFactorisation
from learned_optim.tasks.memory import Memory as Memory
from learned_optim.tasks.mlp_classification import MLPClassification as MLPClassification
from learned_optim.tasks.mnist_mlp import MnistMLP as MnistMLP
from learned_optim.tasks.neural_art import NeuralArt as NeuralArt
from learned_optim.tasks.own_model import OwnModel as OwnModel
from learned_optim.tasks.quadratic import Quadratic as Quadratic
from learned_optim.tasks.rastrigin import Rastrigin as Rastrigin
from learned_optim.tasks.raw_regression import RawRegression as RawRegression
from learned_optim.tasks.resnet import ResNet as ResNet
from learned_optim.tasks.rnn_lm import RNNLanguageModel as RNNLanguageModel
from learned_optim.tasks.rosenbrock import Rosenbrock as Rosenbrock
from learned_optim.tasks.sine_fit import SineFit as SineFit
from learned_optim.tasks.softmax_regression import SoftmaxRegression as SoftmaxRegression
from learned_optim.tasks.teacher_student import TeacherStudent as TeacherStudent
from learned_optim.tasks.transformer_lm import TransformerLanguageModel as TransformerLanguageModel
from learned_optim.tasks.vae import VAE as VAE
from learned_optim.tasks.vit import ViT as ViT

TASK_FAMILIES: dict[str, type[TaskFamily]] = {
    family.name: family
    for family in (
        Quadratic,
        IllConditionedQuadratic,
        Rosenbrock,
        Rastrigin,
        MatrixFactorisation,
        LogisticRegression,
        SoftmaxRegression,
        MLPClassification,
        MnistMLP,
        TeacherStudent,
        FiniteRegression,
        RawRegression,
        Autoencoder,
        VAE,
        CNN,
        CifarConv,
        ResNet,
        ViT,
        RNNLanguageModel,
        TransformerLanguageModel,
        SineFit,
        DifferentialEquation,
        Memory,
        NeuralArt,
        OwnModel,
    )
}
