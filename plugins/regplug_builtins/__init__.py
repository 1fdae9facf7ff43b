"""The regularizers that come with regplug, each found by its entry point like anybody else's."""

from regplug_builtins.dropout import Dropout
from regplug_builtins.elastic_net import ElasticNet
from regplug_builtins.l1 import L1
from regplug_builtins.l2 import L2
from regplug_builtins.weight_decay import WeightDecay

__all__ = ["L1", "L2", "Dropout", "ElasticNet", "WeightDecay"]
