"""Deliveries that can't be right: what is said when they are refused, each with a way out."""

from collections.abc import Iterable

import torch

from regplug.errors import RegplugError, UnsupportedError
from regplug.selection.coverage import Covered

__all__ = [
    "refuse_apart",
    "refuse_elementwise_steps",
    "refuse_silent_loss",
    "refuse_sparse",
    "refuse_sparse_gradients",
]


def refuse_apart(name: str) -> None:
    """Refuse the loss where what is trained is not what the model computes with.

    Raises:
        UnsupportedError: always.
    """
    raise UnsupportedError(
        f"{name}: DeepSpeed's ZeRO trains weights apart from the model's, of which "
        "each rank has a part, and no gradient of a loss reaches them but through its own "
        "reduction: use delivery='step', which is λ exactly, clipping or not"
    )


def refuse_elementwise_steps(name: str, optimizer: object) -> None:
    """Refuse a proximal operator that has no closed form for the steps of an optimizer.

    Raises:
        UnsupportedError: always.
    """
    raise UnsupportedError(
        f"{name}: {type(optimizer).__name__} takes a step of its own for each "
        "element, for which the proximal operator of a penalty that is not separable has "
        "no closed form: use SGD, or delivery='step' (if it does act element by element, "
        "say separable = True)"
    )


def refuse_sparse(name: str, covered: Iterable[Covered]) -> None:
    """Refuse to add to gradients that will be sparse.

    Raises:
        UnsupportedError: one will.
    """
    for entry in covered:
        if getattr(entry.module, "sparse", False) is True:
            raise UnsupportedError(
                f"{name}: {entry.name} has sparse gradients ({type(entry.module).__name__}"
                "(sparse=True)), to which no dense gradient can be added: use sparse=False, "
                f"delivery='proximal', or exclude it with where=[…, '!{entry.name}']"
            )


def refuse_sparse_gradients(
    name: str, gradients: Iterable[torch.Tensor], error: RuntimeError
) -> None:
    """Refuse gradients that turned out to be sparse, which is what an error was about.

    Raises:
        UnsupportedError: one is.
    """
    if any(g.layout != torch.strided for g in gradients):
        raise UnsupportedError(
            f"{name}: a gradient is sparse, to which no dense gradient can be "
            "added: exclude that parameter, or use delivery='proximal'"
        ) from error


def refuse_silent_loss(name: str) -> None:
    """Refuse a loop that never fires the loss event for a penalty that is delivered in it.

    Raises:
        RegplugError: always.
    """
    raise RegplugError(
        f"{name} has delivery='loss', but no gradient came through the loss event: "
        "write `loss = session.loss(loss)` before `loss.backward()`, or use delivery='step'"
    )
