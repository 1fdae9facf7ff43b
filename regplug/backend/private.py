"""Every private name of torch that is used, and what is done where a version has it not.

A private name may go in any release. So each is looked up here, when it is needed, and nowhere
else: where it is gone, a public way is taken, or :class:`UnsupportedError` names it and a way out.
Nothing is left out in silence. The names of torch's optimizers are in
:mod:`regplug.backend.optimizer_names`, what frames tell is in :mod:`regplug.backend.stack`, and the
names of other libraries are in :mod:`regplug.backend.others`.
"""

import importlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

from regplug.errors import UnsupportedError

__all__ = [
    "PREFIXES",
    "compiled_inside",
    "flattened",
    "function_modes",
    "gathered_weights",
    "has_gradient_hooks",
    "in_transform",
    "is_any_autocast_enabled",
    "is_device_mode",
    "leaf_of",
    "missing",
    "normalizations",
    "on_compile_start",
    "unflattened",
    "untraced",
    "version",
    "version_reader",
]

P = ParamSpec("P")
R = TypeVar("R")

# Where the names are; a test that renames one sees what is done without it.
_FLATTEN, _UNFLATTEN = "_utils._flatten_dense_tensors", "_utils._unflatten_dense_tensors"
_UNTRACED = "_compile._disable_dynamo"
_COMPILE_START = "_dynamo.callback.callback_handler"
_INNER, _COMPILED_CLASS = "_orig_mod", "OptimizedModule"
_TRANSFORMS = "_C._are_functorch_transforms_active"
_ANY_AUTOCAST = "_C._is_any_autocast_enabled"
_VERSION = "_version"
_FUNCTION_MODES = "overrides._get_current_function_mode_stack"
_DEVICE_MODE = "utils._device.DeviceContext"
_GRADIENT_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
_LEAF, _ACCUMULATES = "variable", "AccumulateGrad"
_FSDP_STATE, _FSDP_GROUP, _GATHERED = "_get_fsdp_state", "_fsdp_param_group", "_unsharded_param"
_NORMALIZATION = "nn.modules.batchnorm._NormBase"

PREFIXES = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What wrappers put into qualified names. One that is unknown stays there, and a selection by name
then matches nothing, which is an error."""


# Asked at each step, where the name of a path would have to be split each time.
_getter = lru_cache(attrgetter)


def _found(path: str) -> Any:
    """Return ``torch.path``, None where this torch has it not."""
    try:
        return _getter(path)(torch)
    except AttributeError:
        return None


def missing(name: str, what: str, way_out: str) -> UnsupportedError:
    """Return the error that names what this torch has not, what it is for, and a way out."""
    return UnsupportedError(
        f"torch {torch.__version__} has no {name}, by which regplug knows {what}: {way_out}"
    )


# --- tensors -----------------------------------------------------------------------------------


def flattened(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the elements of ``tensors`` one after another, in one call for a thousand of them.

    Without torch's own function: by ``torch.cat``, at the cost of a view of each.
    """
    try:
        private = _getter(_FLATTEN)(torch)
    except AttributeError:
        return torch.cat([tensor.reshape(-1) for tensor in tensors])
    return private(tensors)  # type: ignore[no-any-return]


def unflattened(flat: torch.Tensor, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return ``flat`` cut into pieces shaped as ``like``: the reverse of :func:`flattened`."""
    try:
        private = _getter(_UNFLATTEN)(torch)
    except AttributeError:
        pieces = flat.split([tensor.numel() for tensor in like])
        return [piece.view(tensor.shape) for piece, tensor in zip(pieces, like, strict=True)]
    return list(private(flat, like))


@lru_cache
def _warn_of_versions() -> None:
    warnings.warn(
        f"torch {torch.__version__} has no Tensor.{_VERSION}, by which regplug sees that a tensor "
        "was written to: it can't tell of a loop that trains with another optimizer than the "
        "attached one, nor of one instance of a plugin that two sessions write to",
        stacklevel=4,
    )


def version(tensor: torch.Tensor) -> int | None:
    """Return how often ``tensor`` was written to.

    Without the counter: None, and a warning says once what is not noticed then.
    """
    found: int | None = getattr(tensor, _VERSION, None)
    if found is None:
        _warn_of_versions()
    return found


def leaf_of(node: Any) -> torch.Tensor | None:
    """Return the leaf whose gradient a node of an autograd graph accumulates, None for others.

    Raises:
        UnsupportedError: it accumulates one, and does not say of what.
    """
    leaf: torch.Tensor | None = getattr(node, _LEAF, None)
    if leaf is None and not node.next_functions and _ACCUMULATES in node.name():
        raise missing(
            f"{_ACCUMULATES}.{_LEAF}",
            "the weights that a loss comes from",
            "use delivery='step', and attach without session.loss",
        )
    return leaf


def has_gradient_hooks(tensor: torch.Tensor) -> bool:
    """Whether a hook may change the gradient of a leaf; without torch's tables of them: no."""
    return any(bool(getattr(tensor, name, None)) for name in _GRADIENT_HOOKS)


def version_reader() -> Callable[[torch.Tensor], int | None]:
    """Return what does the same as :func:`version`, for whoever asks at each step."""
    return attrgetter(_VERSION) if hasattr(torch.Tensor, _VERSION) else version


# --- compiling and transforms ------------------------------------------------------------------


def untraced(function: Callable[P, R]) -> Callable[P, R]:
    """Return ``function`` so that ``torch.compile`` breaks its graph there.

    Without the private decorator: by the public one, which imports the compiler at once, a second
    or so.
    """
    wrapped: Callable[P, R] = (_found(_UNTRACED) or torch.compiler.disable)(function)
    return wrapped


def compiled_inside(model: object) -> nn.Module | None:
    """Return the module inside one that ``torch.compile`` returned, None for any other.

    Without the attribute: by what it is, the only child of a module of that class.
    """
    inner = getattr(model, _INNER, None)
    if isinstance(inner, nn.Module):
        return inner
    if isinstance(model, nn.Module) and any(
        base.__name__ == _COMPILED_CLASS for base in type(model).__mro__
    ):
        held = [child for _, child in nn.Module.named_children(model)]
        if len(held) != 1:
            raise missing(
                f"{_COMPILED_CLASS}.{_INNER}",
                "the module inside a compiled one",
                "attach to that module, or compile it in place, model.compile()",
            )
        return held[0]
    return None


def on_compile_start(callback: Callable[..., Any]) -> Callable[[], Any] | None:
    """Call ``callback`` whenever a compilation starts, and return what undoes it.

    Returns None where torch does not tell: a compiled model's optimizer is then found at its first
    step, and the model is compiled once more.
    """
    try:  # not imported by torch itself
        name, _, attribute = _COMPILE_START.rpartition(".")
        handler = getattr(importlib.import_module(f"torch.{name}"), attribute)
        handler.register_start_callback(callback)
        remove = handler.remove_start_callback
    except (ImportError, AttributeError):
        return None
    return lambda: remove(callback)


@lru_cache
def _old_style() -> Any:
    """Return what transforms of ``torch.func`` refuse, as documented: it has no setup_context."""

    class OldStyle(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            return gradient

    return OldStyle


def in_transform() -> bool:
    """Whether a transform of ``torch.func`` (grad, vmap, …) is at work.

    Without torch's own answer: by an autograd function that no transform takes.
    """
    try:
        return bool(_getter(_TRANSFORMS)(torch)())
    except AttributeError:
        pass
    try:
        _old_style().apply(torch.zeros((), device="cpu"))
    except RuntimeError:
        return True
    return False


def is_any_autocast_enabled(enabled: Callable[[], Iterable[str]]) -> Callable[[], bool]:
    """Return what tells whether autocast is on: torch's look at the dispatch keys.

    Without it: the answer of ``enabled``, which asks of one kind of device after another.
    """
    return _found(_ANY_AUTOCAST) or (lambda: bool(enabled()))


def function_modes() -> Sequence[object] | None:
    """Return the modes that torch's functions are called under now, the innermost last.

    Without torch's own answer: None, and whoever asks lets none of their own be on.
    """
    try:
        return list(_getter(_FUNCTION_MODES)(torch)())
    except AttributeError:
        return None


def is_device_mode(mode: object) -> bool:
    """Whether a mode is that of ``torch.set_default_device``, which keeps below all others.

    Without torch's class for it: no.
    """
    kind = _found(_DEVICE_MODE)
    return kind is not None and isinstance(mode, kind)


# --- modules -----------------------------------------------------------------------------------


def gathered_weights(model: nn.Module) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield what FSDP2 computes with, gathered, and the sharded parameter that it stands for.

    Without the names: nothing, so that what is done with gathered weights is not seen.
    """
    for module in model.modules():
        state = getattr(module, _FSDP_STATE, lambda: None)()
        for held in getattr(getattr(state, _FSDP_GROUP, None), "fsdp_params", ()):
            gathered, own = getattr(held, _GATHERED, None), getattr(held, "sharded_param", None)
            if gathered is not None and own is not None:
                yield gathered, own


def normalizations() -> tuple[type[nn.Module], ...]:
    """Return the base of batch and instance norm; without it the public classes made of it."""
    base = _found(_NORMALIZATION)
    if base is not None:
        return (base,)
    return (
        *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
        *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
        *(nn.LazyBatchNorm1d, nn.LazyBatchNorm2d, nn.LazyBatchNorm3d),
        *(nn.LazyInstanceNorm1d, nn.LazyInstanceNorm2d, nn.LazyInstanceNorm3d),
    )
