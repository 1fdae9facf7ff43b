"""Every private name of torch that these plugins use, and what is done where it is gone."""

import inspect
from functools import lru_cache
from operator import attrgetter
from typing import Any

import torch
from torch import nn
from torch.autograd.function import FunctionCtx

from regplug.errors import UnsupportedError

__all__ = [
    "check_backward_is_known",
    "in_autograd_function",
    "in_backward",
    "is_dropout",
    "is_fake",
    "soft_threshold_",
]

# Where the names are; a test that renames one sees what is done without it.
_SOFTSHRINK = "_C._nn.softshrink"
_BACKWARD = "_C._current_graph_task_id"
_DROPOUT = "nn.modules.dropout._DropoutNd"
_FAKE = "_subclasses.fake_tensor.FakeTensor"

_DROPOUTS = (
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.AlphaDropout, nn.FeatureAlphaDropout),
)


# Asked at each step, where the name of a path would have to be split each time.
_getter = lru_cache(attrgetter)


def _found(path: str) -> Any:
    """Return ``torch.path``, None where this torch has it not."""
    try:
        return _getter(path)(torch)
    except AttributeError:
        return None


def soft_threshold_(w: torch.Tensor, threshold: float) -> None:
    """Replace ``w`` by sign(w)·max(|w| − threshold, 0), with no temporary.

    The public function takes no ``out=``: without the private one it and a copy do the same, in
    twice the time.

    >>> w = torch.tensor([-3.0, 0.5, 2.0])
    >>> soft_threshold_(w, 1.0); w
    tensor([-2.,  0.,  1.])
    """
    try:
        private = _getter(_SOFTSHRINK)(torch)
    except AttributeError:
        w.copy_(nn.functional.softshrink(w, threshold))
    else:
        private(w, threshold, out=w)


def is_dropout(module: nn.Module) -> bool:
    """Whether ``module`` is one of torch's dropouts: by their base, else by the public classes.

    Without the base a class that is made of it alone is judged by its name, as any other.
    """
    return isinstance(module, _found(_DROPOUT) or _DROPOUTS)


def is_fake(tensor: torch.Tensor) -> bool:
    """Whether ``tensor`` is one that ``torch.export`` runs a model on, which holds nothing.

    Without its class: by what it is, of no class of ours and with no memory that it could show.
    """
    if type(tensor) in (torch.Tensor, nn.Parameter):
        return False
    kind = _found(_FAKE)
    if kind is not None:
        return isinstance(tensor, kind)
    try:
        tensor.data_ptr()
    except RuntimeError:
        return True
    return False


def check_backward_is_known(name: str) -> None:
    """Check that torch tells of a forward that runs within a backward pass.

    Raises:
        UnsupportedError: it does not: activations that are checkpointed would count twice.
    """
    if _found(_BACKWARD) is None:
        raise UnsupportedError(
            f"{name}: torch {torch.__version__} has no torch.{_BACKWARD}, by which a forward is "
            "known that activation checkpointing computes again, and would count twice: leave "
            f"{name} out, or put its term into the loss yourself"
        )


def in_backward() -> bool:
    """Whether a backward pass runs in this thread, which computes checkpointed forwards again."""
    return not torch.compiler.is_compiling() and _found(_BACKWARD)() != -1


def in_autograd_function() -> bool:
    """Whether this runs in the ``forward`` of an ``autograd.Function``, as in a checkpoint's.

    By the public names of both. A Python that shows no frames has no sessions of optimizers.
    """
    frame = inspect.currentframe()
    while frame is not None:
        code = frame.f_code
        if code.co_name == "forward" and code.co_argcount:
            first = frame.f_locals.get(code.co_varnames[0])
            if isinstance(first, FunctionCtx):
                return True
        frame = frame.f_back
    return False
