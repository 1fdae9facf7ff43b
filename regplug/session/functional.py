"""Whether the loss came from the weights that a penalty is of: ``torch.func`` runs on others.

``torch.func.functional_call(model, weights, x)`` leaves the module's own weights alone, and those
are what a session knows. Nothing tells of it but the graph behind the loss, so that is looked at:
in the first loss event, and in ever fewer after it, since a walk costs a millisecond or so.
"""

import warnings
from collections.abc import Iterable

import torch
from torch import nn

from regplug.backend import shards, wrappers
from regplug.backend.private import in_transform
from regplug.delivery.terms import Term
from regplug.errors import UnsupportedError

__all__ = ["InUse", "refuse_transforms"]

_WAY_OUT = (
    "put the penalty of the weights in use into the loss yourself, or let the module hold them "
    "(copy them into it, and call the module)"
)


def refuse_transforms() -> None:
    """Refuse a loss event inside ``torch.func.grad``, ``vmap`` and their like.

    Raises:
        UnsupportedError: one is at work.
    """
    if in_transform():
        raise UnsupportedError(
            "session.loss was called inside a transform of torch.func (grad, vmap, jacrev, …), "
            "which would not differentiate the penalties of the module's own weights: call it "
            f"outside of the transform, use delivery='step', or {_WAY_OUT}"
        )


class InUse:
    """Looks whether losses come from the weights that are penalized in them."""

    def __init__(self) -> None:
        self._events = 0
        self._next = 1
        self._warned = False

    def look(
        self,
        model: nn.Module,
        loss: torch.Tensor,
        terms: Iterable[Term],
        plain: Iterable[torch.Tensor],
    ) -> None:
        """Look at a loss to which penalties, and tensors of other plugins, will be added.

        Raises:
            UnsupportedError: its graph ends in other tensors of just the shapes of the weights
                that are penalized.
        """
        self._events += 1
        if self._events < self._next or loss.grad_fn is None:
            return
        self._next = 2 * self._events
        parameters = set(model.parameters())
        weights: set[torch.Tensor] = {
            entry.parameter for term in terms for entry in term.coverage.trainable
        }
        weights.update(leaf for term in plain for leaf in wrappers.leaves(term) & parameters)
        # FSDP2 computes with gathered weights, which the graph ends in instead of the shards.
        if not weights or any(map(shards.is_dtensor, weights)):
            return
        # A number that stands for a loss (0, where there is no data) is no weight of anybody's.
        leaves = {leaf for leaf in wrappers.leaves(loss) if leaf.ndim}
        if not leaves or leaves & parameters:
            return
        if _stand_for(leaves, weights):
            raise UnsupportedError(
                "this loss does not come from the module's own weights, of which the penalties "
                "are, but from others of their shapes (torch.func.functional_call, or a copy of "
                f"the model): {_WAY_OUT}"
            )
        if not self._warned and not _computes_again(loss):
            self._warned = True
            warnings.warn(
                "the loss given to session.loss comes from none of the weights of "
                f"{type(model).__name__}, and their penalties are added to it: if "
                f"torch.func.functional_call gave the module others, {_WAY_OUT}",
                stacklevel=5,
            )


def _stand_for(leaves: Iterable[torch.Tensor], weights: Iterable[torch.Tensor]) -> bool:
    """Whether there is a leaf for each weight, alone or in a stack of them for an ensemble."""
    shapes = {leaf.shape for leaf in leaves}
    shapes |= {shape[1:] for shape in shapes}
    return all(w.shape in shapes for w in weights)


def _computes_again(loss: torch.Tensor) -> bool:
    """Whether the graph hides a part of itself in a Python function, as checkpointing does."""
    python = torch.autograd.function.BackwardCFunction
    return any(isinstance(node, python) for node in wrappers.graph(loss))
