"""All of a loop but its weights, as it is found before and after a plugin."""

from collections.abc import Collection
from typing import Any

import torch

from regplug.testing.bench import Rig
from regplug.testing.noise import rates
from regplug.testing.subject import Failure

__all__ = ["check_restored", "states", "structure"]


def structure(rig: Rig) -> dict[str, Any]:
    """Describe everything but the weights that a plugin could have changed."""
    found: dict[str, Any] = {}
    for path, module in rig.model.named_modules():
        at = path or "the model"
        found[f"{at}: class"] = type(module)
        own = {n: v for n, v in vars(module).items() if not _as_in_class(module, n)}
        found[f"{at}: attributes"] = sorted(own)
        found[f"{at}: training"] = module.training
        found[f"{at}: parameters, buffers and modules"] = _owned(module)
        for name, value in rates(module):
            if name in own:
                found[f"{at}.{name}"] = value
        for name, value in own.items():
            if isinstance(value, float | torch.Tensor):
                found[f"{at}.{name}: type"] = type(value)
            elif isinstance(value, int | str | None) or callable(value):
                found[f"{at}.{name}"] = value
            if name.endswith("_hooks") and isinstance(value, dict):
                found[f"{at}: {name}"] = [_named(hook) for hook in value.values()]
    for name, p in rig.model.named_parameters(remove_duplicate=False):
        found[f"{name}: identity"] = id(p)
        found[f"{name}: class"] = type(p)
        found[f"{name}: requires_grad"] = p.requires_grad
        found[f"{name}: hooks"] = _hooks(p)
        found[f"{name}: attributes"] = sorted(vars(p))
        found[f"{name}: memory"] = (p.data_ptr(), p.dtype, p.device, p.shape, p.stride())
    for name, buffer in rig.model.named_buffers():
        found[f"{name}: buffer"] = id(buffer)
        found[f"{name}: values"] = buffer.tolist()
    found.update(_of_optimizer(rig.optimizer))
    return found


def _as_in_class(module: torch.nn.Module, name: str) -> bool:
    """Tell whether an attribute is a plain value that the module's class has, too."""
    value, of_class = vars(module)[name], getattr(type(module), name, None)
    return (
        type(value) is type(of_class)
        and isinstance(value, int | float | str)
        and (value == of_class)
    )


def _owned(module: torch.nn.Module) -> list[str]:
    named = (
        module.named_parameters(recurse=False, remove_duplicate=False),
        module.named_buffers(recurse=False, remove_duplicate=False),
        module.named_children(),
    )
    kept = {name for name in module.state_dict() if "." not in name}
    names = [name for each in named for name, _ in each]
    return [name + ("" if name in kept else " (not saved)") for name in sorted(names)]


def _of_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    found: dict[str, Any] = {
        "the optimizer's class": type(optimizer),
        "the optimizer's attributes": sorted(vars(optimizer)),
        "the optimizer's defaults": repr(sorted(optimizer.defaults.items())),
        "the list of parameter groups": id(optimizer.param_groups),
    }
    for index, group in enumerate(optimizer.param_groups):
        for key, value in group.items():
            if key != "params":
                found[f"{key} of parameter group {index}"] = repr(value)
        found[f"weights of parameter group {index}"] = [id(p) for p in group["params"]]
    for name, value in vars(optimizer).items():
        if name.endswith("_hooks"):
            found[f"the optimizer's {name}"] = [_named(hook) for hook in value.values()]
        elif callable(value):
            found[f"the optimizer's {name}"] = value
    return found


def states(rig: Rig) -> dict[str, list[str]]:
    """Return what the optimizer keeps of each weight, by name; of others by what they are."""
    names: dict[torch.Tensor, str] = {p: name for name, p in rig.parameters.items()}
    return {
        names.get(p, f"a {type(p).__name__} that is no weight"): sorted(map(str, kept))
        for p, kept in rig.optimizer.state.items()
    }


def _named(hook: object) -> str:
    return str(getattr(hook, "__qualname__", type(hook).__qualname__))


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


def check_restored(
    rig: Rig, before: dict[str, Any], when: str, *, left_out: Collection[str] = ()
) -> None:
    """Compare with what :func:`structure` returned before, but for what ``left_out`` names.

    Raises:
        Failure: something is not as it was; the message names it.
    """
    after = structure(rig)
    for key in {**before, **after}:
        if before.get(key) != after.get(key) and key not in left_out:
            now, was = _unlike(after.get(key), before.get(key))
            raise Failure(
                f"{when} it has left behind: {key} is {now}, was {was}; on_detach must put back "
                "whatever the plugin has changed"
            )


def _unlike(now: Any, before: Any) -> tuple[str, str]:
    if isinstance(now, list) and isinstance(before, list) and all(isinstance(x, str) for x in now):
        more, less = [x for x in now if x not in before], [x for x in before if x not in now]
        if more or less:
            return f"with {more}" if more else f"without {less}", f"with {less}" if less else (
                "without" if more else "with them"
            )
    return repr(now)[:100], repr(before)[:100]
