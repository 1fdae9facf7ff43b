"""The regularizers that come with regplug, each found by its entry point like anybody else's."""

from regplug_builtins.activity import Activity
from regplug_builtins.drop_path import DropPath
from regplug_builtins.dropout import Dropout
from regplug_builtins.elastic_net import ElasticNet
from regplug_builtins.gradient_noise import GradientNoise
from regplug_builtins.group_lasso import GroupLasso
from regplug_builtins.hard_threshold import HardThreshold
from regplug_builtins.l1 import L1
from regplug_builtins.l1_ball import L1Ball
from regplug_builtins.l2 import L2
from regplug_builtins.l2_sp import L2SP
from regplug_builtins.max_norm import MaxNorm
from regplug_builtins.non_negative import NonNegative
from regplug_builtins.orthogonal import Orthogonal
from regplug_builtins.spectral_norm import SpectralNorm
from regplug_builtins.unit_norm import UnitNorm
from regplug_builtins.weight_decay import WeightDecay

__all__ = [
    "L1",
    "L2",
    "L2SP",
    "Activity",
    "DropPath",
    "Dropout",
    "ElasticNet",
    "GradientNoise",
    "GroupLasso",
    "HardThreshold",
    "L1Ball",
    "MaxNorm",
    "NonNegative",
    "Orthogonal",
    "SpectralNorm",
    "UnitNorm",
    "WeightDecay",
]
