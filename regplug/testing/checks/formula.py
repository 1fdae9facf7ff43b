"""Checks of a penalty's formula alone: value, gradient, separability."""

from collections.abc import Iterable, Iterator

import torch

from regplug.penalty import Penalty
from regplug.testing.registry import Case, check
from regplug.testing.subject import Failure, Skip, Subject

__all__ = ["close_to", "keeps_dtype", "weights_away_from_zero"]

SHAPES = ((4, 3), (1, 5), (6, 2))


def weights_away_from_zero(dtype: torch.dtype = torch.float64) -> Iterator[torch.Tensor]:
    """Yield weights away from 0, where many formulas have a kink."""
    generator = torch.Generator().manual_seed(5)
    for shape in SHAPES:
        w = torch.randn(shape, dtype=torch.float64, generator=generator)
        yield (w + 0.2 * w.sign()).to(dtype)


def _value(penalty: Penalty, w: torch.Tensor) -> torch.Tensor:
    value = penalty.value(w)
    if not isinstance(value, torch.Tensor) or value.ndim != 0:
        raise Failure(f"value(w) must return a 0-d tensor, got {value!r}")
    return value


def _autograd(penalty: Penalty, w: torch.Tensor) -> torch.Tensor:
    with torch.enable_grad():
        w = w.detach().clone().requires_grad_()
        value = _value(penalty, w)
        if not value.requires_grad:
            raise Skip("the value has no gradient: see differentiable")
        (gradient,) = torch.autograd.grad(value, w, allow_unused=True)
    if gradient is None:
        raise Skip("the value does not depend on w in autograd's eyes: see differentiable")
    return gradient


def close_to(found: torch.Tensor, expected: torch.Tensor, what: str, rtol: float = 1e-6) -> None:
    """Raise a ``Failure`` that says ``what`` if two tensors differ."""
    if found.shape != expected.shape:
        raise Failure(f"{what} has shape {tuple(found.shape)} instead of {tuple(expected.shape)}")
    scale = float(expected.detach().double().abs().max()) if expected.numel() else 0.0
    gap = float((found.detach().double() - expected.detach().double()).abs().max())
    if not gap <= rtol * max(scale, 1e-3):
        raise Failure(f"{what} is off by up to {gap:.3g}, with values of up to {scale:.3g}")


@check("differentiable")
def differentiable(subject: Subject) -> Iterable[Case]:
    """The value is a 0-d tensor with a gradient that is not zero everywhere."""
    penalty = subject.penalty

    def run() -> None:
        for w in weights_away_from_zero():
            w.requires_grad_()
            value = _value(penalty, w)
            if not value.requires_grad:
                raise Failure(
                    "value(w) has no gradient: it must be computed from w itself, not from w.data, "
                    "w.detach() or under torch.no_grad()"
                )
            (gradient,) = torch.autograd.grad(value, w, allow_unused=True)
            if gradient is None or not gradient.isfinite().all():
                raise Failure("the gradient of value(w) is not finite, or w is not in its graph")

    yield "value", run


@check("gradient", after=("differentiable",))
def gradient(subject: Subject) -> Iterable[Case]:
    """Whatever states the gradient once more agrees with autograd of the value."""
    penalty = subject.penalty

    def plain() -> None:
        for w in weights_away_from_zero():
            before = w.clone()
            close_to(penalty.gradient(w), _autograd(penalty, w), "gradient(w)")
            if not torch.equal(w, before):
                raise Failure("gradient(w) changed w")

    def scaled() -> None:
        for factor in (0.5, -2.0):
            weights = list(weights_away_from_zero())
            for w, g in zip(weights, penalty.gradients(weights, factor), strict=True):
                words = f"what gradients returns, with factor {factor:g},"
                close_to(g, factor * _autograd(penalty, w), words)

    def added() -> None:
        for factor in (0.5, -2.0):
            weights = list(weights_away_from_zero())
            gradients = [torch.ones_like(w) for w in weights]
            penalty.add_gradients(gradients, weights, factor)
            for w, g in zip(weights, gradients, strict=True):
                words = f"what add_gradients adds, with factor {factor:g},"
                close_to(g - 1, factor * _autograd(penalty, w), words)

    cls = type(penalty)
    stated = {
        "gradient": (cls.gradient is not Penalty.gradient, plain),
        "gradients": (cls.gradients is not Penalty.gradients, scaled),
        "add_gradients": (cls.add_gradients is not Penalty.add_gradients, added),
    }
    if not any(is_stated for is_stated, _ in stated.values()):
        raise Skip("it states no gradient of its own: autograd's is used")
    for regime, (is_stated, run) in stated.items():
        if is_stated:
            yield regime, torch.no_grad()(run)


@check("finite-difference", after=("differentiable",))
def finite_difference(subject: Subject) -> Iterable[Case]:
    """Autograd of the value is the limit of its differences."""
    penalty = subject.penalty

    def run(h: float = 1e-6) -> None:
        # Also where weights are large: what is cut off or detached there is no better than here.
        for w in (*weights_away_from_zero(), 8 * next(weights_away_from_zero())):
            found, numeric = _autograd(penalty, w), torch.empty_like(w)
            with torch.no_grad():
                for i in range(w.numel()):
                    shift = torch.zeros_like(w)
                    shift.view(-1)[i] = h
                    up, down = _value(penalty, w + shift), _value(penalty, w - shift)
                    numeric.view(-1)[i] = (up.double() - down.double()) / (2 * h)
            close_to(found, numeric, "the gradient that autograd finds, against differences,", 1e-4)

    yield "value", run


@check("separable")
def separable(subject: Subject) -> Iterable[Case]:
    """What calls itself separable gives the same on blocks as on the whole."""
    penalty = subject.penalty
    if not penalty.separable:
        raise Skip("it does not call itself separable")

    def blocks(w: torch.Tensor) -> Iterator[list[torch.Tensor]]:
        flat = w.reshape(-1)
        for size in (1, 2, 5):
            yield list(flat.split(size))
        yield list(w.split(1))

    def value() -> None:
        for w in weights_away_from_zero():
            for pieces in blocks(w):
                total = torch.stack([_value(penalty, piece) for piece in pieces]).sum()
                close_to(total, penalty.value(w), "the value of the blocks of w")

    def gradients() -> None:
        for w in weights_away_from_zero():
            whole = penalty.gradient(w).reshape(-1)
            for pieces in blocks(w):
                found = torch.cat([penalty.gradient(piece).reshape(-1) for piece in pieces])
                close_to(found, whole, "the gradient on the blocks of w")

    def operators() -> None:
        if type(penalty).proximal is Penalty.proximal:
            raise Skip("it has no proximal operator")
        for w in weights_away_from_zero():
            whole = penalty.proximal(w.clone(), 0.3).reshape(-1)
            for pieces in blocks(w):
                found = [penalty.proximal(piece.clone(), 0.3).reshape(-1) for piece in pieces]
                close_to(torch.cat(found), whole, "the proximal point of the blocks of w")

    for regime, run in (("value", value), ("gradient", gradients), ("proximal", operators)):
        yield regime, torch.no_grad()(run)


def keeps_dtype(penalty: Penalty, dtype: torch.dtype) -> None:
    """Raise a ``Failure`` unless the formula keeps shape, dtype and device of the weights."""
    for w in weights_away_from_zero(dtype):
        results = {"value(w)": penalty.value(w), "gradient(w)": penalty.gradient(w)}
        if type(penalty).proximal is not Penalty.proximal:
            results["proximal(w, 0.1)"] = penalty.proximal(w.clone(), 0.1)
        for what, found in results.items():
            if (found.dtype, found.device) != (w.dtype, w.device):
                raise Failure(
                    f"{what} is {found.dtype} on {found.device} for weights of {w.dtype} on "
                    f"{w.device}"
                )
