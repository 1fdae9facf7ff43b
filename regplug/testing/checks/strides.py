"""Check that a formula sees a weight's elements, and not how they lie in memory."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch

from regplug.penalty import Penalty
from regplug.testing.registry import Case, check
from regplug.testing.subject import Failure, Skip, Subject

__all__: list[str] = []


def _random(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(8)
    w = torch.randn(shape, dtype=torch.float64, generator=generator)
    return w + 0.2 * w.sign()


def _transposed() -> torch.Tensor:
    return _random(3, 4).t()


def _every_other() -> torch.Tensor:
    return _random(4, 6)[:, ::2]


def _offset() -> torch.Tensor:
    return _random(6, 3)[2:]


def _expanded() -> torch.Tensor:
    return _random(4, 1).expand(4, 3)


def _channels_last() -> torch.Tensor:
    return _random(4, 3, 2, 2).contiguous(memory_format=torch.channels_last)


def _permuted() -> torch.Tensor:
    return _random(2, 3, 4).permute(2, 0, 1)


_LAYOUTS: dict[str, Callable[[], torch.Tensor]] = {
    "transposed": _transposed,
    "every other column": _every_other,
    "a slice": _offset,
    "expanded": _expanded,
    "channels last": _channels_last,
    "permuted, 3-D": _permuted,
}


@check("memory-order", after=("differentiable", "pure", "gradient", "finite-difference"))
def memory_order(subject: Subject) -> Iterable[Case]:
    """Value, gradient and proximal point are the same however the weight lies in memory.

    Transposed, strided, a slice of another tensor, expanded, channels last: against the same
    numbers in a contiguous tensor.
    """
    penalty = subject.penalty
    for words, make in _LAYOUTS.items():
        yield words, torch.no_grad()(partial(_alike, penalty, words, make))


def _outcomes(penalty: Penalty, w: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    yield "value(w)", penalty.value(w)
    yield "gradient(w)", penalty.gradient(w)
    if type(penalty).gradient is not Penalty.gradient:
        yield "the gradient of value(w) by autograd", Penalty.gradient(penalty, w)
    if type(penalty).proximal is not Penalty.proximal:
        # An expanded weight can't be trained, so nobody writes into one.
        yield "proximal(w, 0.3)", penalty.proximal(w, 0.3)
        yield "proximal(w, steps)", penalty.proximal(w, torch.full_like(w, 0.3))


def _alike(penalty: Penalty, words: str, make: Callable[[], torch.Tensor]) -> None:
    w = make()
    plain = torch.empty(w.shape, dtype=w.dtype).copy_(w)
    assert plain.is_contiguous()
    try:
        expected = list(_outcomes(penalty, plain))
    except Exception as error:
        raise Skip(f"it takes no weight of shape {tuple(w.shape)}: {error}") from error
    try:
        found = list(_outcomes(penalty, w))
    except RuntimeError as error:
        if penalty.separable:  # which is handed flat pieces, whatever the weight is
            raise Skip(f"it is handed flat pieces, and does not take this one: {error}") from error
        raise Failure(
            f"it fails where the weight is {words} in memory (strides {w.stride()}): take "
            f"reshape or flatten in place of view; {error}"
        ) from error
    for (what, one), (_, other) in zip(found, expected, strict=True):
        if one.shape != other.shape or not torch.allclose(one, other, rtol=1e-9, atol=1e-12):
            raise Failure(
                f"{what} is another one where the weight is {words} in memory (strides "
                f"{w.stride()}): look at its elements by index and shape, and not at its storage"
            )
