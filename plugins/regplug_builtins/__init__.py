"""The regularizers that come with regplug, each found by its entry point like anybody else's.

A module is imported when its plugin is first asked for, so one plugin loads no other.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from regplug_builtins.activity import Activity
    from regplug_builtins.cpr import CPR
    from regplug_builtins.decay_to_start import DecayToStart
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
    from regplug_builtins.label_smoothing import LabelSmoothing
    from regplug_builtins.lora_l2 import LoraL2
    from regplug_builtins.max_norm import MaxNorm
    from regplug_builtins.non_negative import NonNegative
    from regplug_builtins.orthogonal import Orthogonal
    from regplug_builtins.spectral_norm import SpectralNorm
    from regplug_builtins.target_sparsity import TargetSparsity
    from regplug_builtins.unit_norm import UnitNorm
    from regplug_builtins.weight_decay import WeightDecay

__all__ = [
    "CPR",
    "L1",
    "L2",
    "L2SP",
    "Activity",
    "DecayToStart",
    "DropPath",
    "Dropout",
    "ElasticNet",
    "GradientNoise",
    "GroupLasso",
    "HardThreshold",
    "L1Ball",
    "LabelSmoothing",
    "LoraL2",
    "MaxNorm",
    "NonNegative",
    "Orthogonal",
    "SpectralNorm",
    "TargetSparsity",
    "UnitNorm",
    "WeightDecay",
]

_MODULES = {
    "Activity": "activity",
    "CPR": "cpr",
    "DecayToStart": "decay_to_start",
    "DropPath": "drop_path",
    "Dropout": "dropout",
    "ElasticNet": "elastic_net",
    "GradientNoise": "gradient_noise",
    "GroupLasso": "group_lasso",
    "HardThreshold": "hard_threshold",
    "L1": "l1",
    "L1Ball": "l1_ball",
    "L2": "l2",
    "L2SP": "l2_sp",
    "LabelSmoothing": "label_smoothing",
    "LoraL2": "lora_l2",
    "MaxNorm": "max_norm",
    "NonNegative": "non_negative",
    "Orthogonal": "orthogonal",
    "SpectralNorm": "spectral_norm",
    "TargetSparsity": "target_sparsity",
    "UnitNorm": "unit_norm",
    "WeightDecay": "weight_decay",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
