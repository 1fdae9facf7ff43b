"""Check that a penalty's gradient arrives at weights of every shape that it takes."""

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import nn

import regplug
from regplug.errors import RegplugError
from regplug.penalty import Penalty
from regplug.testing.registry import Case, check
from regplug.testing.subject import Failure, Skip, Subject

__all__: list[str] = []


_RATE = 0.01


class _One(nn.Module):
    """Holds one parameter and no layer."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape))


_LAYERS: dict[str, Callable[[], nn.Module]] = {
    "a convolution, 4-D": lambda: nn.Conv2d(2, 3, 3),
    "a convolution, 3-D": lambda: nn.Conv1d(2, 4, 3),
    "a convolution, 5-D": lambda: nn.Conv3d(2, 3, 2),
    "a convolution of one pixel": lambda: nn.Conv2d(3, 4, 1),
    "an embedding": lambda: nn.Embedding(9, 3),
    "a matrix with one row": lambda: nn.Linear(5, 1),
    "a matrix with one column": lambda: nn.Linear(1, 5),
    "a vector": lambda: _One(5),
    "a vector with one element": lambda: _One(1),
    "a number, 0-d": _One,
    "a weight without elements": lambda: _One(0, 3),
}


@check("shapes", after=("differentiable", "gradient", "extremes", "where", "strength", "delivery"))
def shapes(subject: Subject) -> Iterable[Case]:
    """What arrives at the weight of any layer is λ times the gradient of value(w) by autograd.

    Convolutions of each dimension, embeddings, one row or column, a vector, a number, no element at
    all; by the step and in the loss. A plugin may refuse a shape, aloud; it may not leave it out.
    """
    penalty = subject.penalty
    if type(penalty).companions is not Penalty.companions:
        raise Skip("its formula takes more than the weight")
    for words, make in _LAYERS.items():
        for delivery in subject.deliveries:
            if delivery in ("step", "loss"):
                yield f"{words}, {delivery}", partial(_arrives, subject, words, make, delivery)


def _filled(make: Callable[[], nn.Module]) -> nn.Module:
    model = nn.Sequential(make()).double()
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(generator=generator)
            p.add_(0.2 * p.sign())
    return model


def _expected(penalty: Penalty, w: torch.Tensor) -> torch.Tensor | str:
    """Return λ·∂value/∂w, or why there is none."""
    leaf = w.detach().clone().requires_grad_()
    try:
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(penalty.value(leaf), leaf)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return penalty.strength * gradient


def _is_left_out(penalty: Penalty, w: torch.Tensor, gradient: torch.Tensor) -> bool:
    if bool(gradient.any()) or w[0, 0].numel() == 1:
        return False
    matrix = _expected(penalty, w.flatten(1))
    return isinstance(matrix, torch.Tensor) and bool(matrix.any())


def _arrives(
    subject: Subject, words: str, make: Callable[[], nn.Module], delivery: str | None
) -> None:
    model = _filled(make)
    w = model.get_parameter("0.weight")
    plugin = subject.only(subject.loud(delivery), "0.weight").make()
    assert isinstance(plugin, Penalty)
    expected, start = _expected(plugin, w), w.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=_RATE)
    try:
        session = regplug.attach(model, optimizer, [plugin])
    except RegplugError as error:
        raise Skip(f"it refuses {words}: {error}") from error
    try:
        data = torch.full_like(w, 0.25)
        loss = session.loss((w * data).sum())
        loss.backward()
        optimizer.step()
    except Exception as error:
        raise Skip(f"it takes no {words.removeprefix('a ')}, aloud: {error}") from error
    finally:
        session.detach()
    if isinstance(expected, str) and not w.numel():
        raise Skip(f"value(w) takes no weight without elements: {expected}")
    if isinstance(expected, str):
        raise Failure(
            f"value(w) fails for {words} ({expected}), and yet a step goes by without a word: let "
            "no except stand around a formula; refuse what it is not for in on_attach"
        )
    if w.ndim > 2 and _is_left_out(plugin, w, expected):
        raise Failure(
            f"value(w) of {words} is 0 whatever the weights are, though of the same numbers in a "
            "matrix it is not: what a formula is not for is excluded by where, or refused in "
            "on_attach, and not passed over in silence"
        )
    if not w.numel() and not bool(loss.isfinite()):
        raise Skip("value(w) of a weight without elements is no number")
    if not bool(loss.isfinite()):
        raise Failure(f"with {words} the loss is {float(loss):g}")
    # By the update, for what is as good as the optimizer's own decay may be left to it.
    found = (start - w.detach()) / _RATE - data
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    if not torch.allclose(found, expected, rtol=1e-6, atol=1e-6 * scale + 1e-12):
        raise Failure(
            f"at {words}, of shape {tuple(w.shape)}, it adds a gradient of norm "
            f"{float(found.norm()):.6g}, where λ times that of value(w) has the norm "
            f"{float(expected.norm()):.6g}: state it for any number of dimensions, or not at all"
        )
