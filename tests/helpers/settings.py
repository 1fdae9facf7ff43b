"""Settings of a process that a test may change for its own time only."""

from typing import Any

import torch
from torch import nn

from regplug.backend.process import default_device, modes_entered

__all__ = ["settings"]


def settings() -> dict[str, Any]:
    """Return what holds for all of this process, as far as another test could stumble over it."""
    found = {
        "default dtype": torch.get_default_dtype(),
        "default device": default_device(),
        "gradient mode": torch.is_grad_enabled(),
        "modes": modes_entered(),
        "deterministic": torch.get_deterministic_debug_mode(),
        "anomaly detection": torch.is_anomaly_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "a process group": torch.distributed.is_initialized(),
    }
    for name, hooks in vars(nn.modules.module).items():
        if name.startswith("_global_") and isinstance(hooks, dict):
            found[name] = len(hooks)
    return found
