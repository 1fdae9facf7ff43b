"""All of a loop but its weights, as it is found before and after a plugin."""

from typing import Any

import torch

from regplug.testing.bench import Rig, rates
from regplug.testing.subject import Failure

__all__ = ["check_restored", "structure"]


def structure(rig: Rig) -> dict[str, Any]:
    """Describe everything but the weights that a plugin could have changed."""
    found: dict[str, Any] = {}
    for path, module in rig.model.named_modules():
        at = path or "the model"
        found[f"{at}: class"] = type(module)
        found[f"{at}: attributes"] = sorted(vars(module))
        found[f"{at}: training"] = module.training
        for name, value in rates(module):
            found[f"{at}.{name}"] = value
        for name, value in vars(module).items():
            if isinstance(value, float | torch.Tensor):
                found[f"{at}.{name}: type"] = type(value)
            if name.endswith("_hooks") and isinstance(value, dict):
                found[f"{at}: {name}"] = len(value)
    for name, p in rig.model.named_parameters(remove_duplicate=False):
        found[f"{name}: identity"] = id(p)
        found[f"{name}: requires_grad"] = p.requires_grad
        found[f"{name}: hooks"] = _hooks(p)
    for name, buffer in rig.model.named_buffers():
        found[f"{name}: buffer"] = id(buffer)
    for index, group in enumerate(rig.optimizer.param_groups):
        options = {key: value for key, value in group.items() if key != "params"}
        found[f"options of parameter group {index}"] = repr(sorted(options.items()))
    for name, value in vars(rig.optimizer).items():
        if name.endswith("_hooks"):
            found[f"the optimizer's {name}"] = len(value)
    return found


def _hooks(p: torch.Tensor) -> list[int]:
    """Return how many hooks of either kind there are, beside one that is put there to ask."""
    if not p.requires_grad:
        return [0, 0]  # none can be
    handles = [
        p.register_hook(lambda gradient: None),
        p.register_post_accumulate_grad_hook(lambda parameter: None),
    ]
    others = [len(handle.hooks_dict_ref() or ()) - 1 for handle in handles]
    for handle in handles:
        handle.remove()
    return others


def check_restored(rig: Rig, before: dict[str, Any], when: str) -> None:
    """Compare with what :func:`structure` returned before.

    Raises:
        Failure: something is not as it was; the message names it.
    """
    after = structure(rig)
    for key in {**before, **after}:
        if before.get(key) != after.get(key):
            raise Failure(
                f"{when} it has left behind: {key} is {after.get(key)!r}, was {before.get(key)!r}"
            )
