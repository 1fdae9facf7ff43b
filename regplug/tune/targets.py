"""The target as a loss wants it: its type, its shape and its labels, and never a broadcast.

A loss is tried once on what a model returned: with targets of every type and shape that mean the
same, in an order that begins with the likeliest. The first that it takes without spreading rows
over rows is taken. So whole numbers are as good as floats for a loss of values, ``(n,)`` as good as
``(n, 1)``, and labels of two classes of any kind as good as 0 and 1 for a single logit.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from regplug.errors import SpecError
from regplug.tune.data import as_numpy
from regplug.tune.labels import codes_of, name_of_loss
from regplug.tune.losses import Call, Tells, Watch, tensors

__all__ = ["Form", "Loss", "form_of", "numbers"]

Loss: TypeAlias = Callable[[Any, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Form:
    """How a loss takes a target.

    Attributes:
        dtype: of the target's tensor.
        tail: its shape, without the rows.
        labels: what its values become, in order, where they are not taken as they are.
        codes: what they become.
        classes: whether the loss is for classes; None if it is not known.
        tells: what the model's output is; None if it is not known.
    """

    dtype: torch.dtype
    tail: tuple[int, ...]
    labels: torch.Tensor | None = None
    codes: tuple[int, ...] = ()
    classes: bool | None = None
    tells: Tells | None = None

    def of(self, target: torch.Tensor) -> torch.Tensor:
        """Return numbers from :func:`numbers` in this form."""
        return self.encoded(target).to(self.dtype).reshape(len(target), *self.tail)

    def encoded(self, target: torch.Tensor) -> torch.Tensor:
        """Return such numbers with labels replaced by their codes."""
        if self.labels is None:
            return target
        codes = torch.tensor(self.codes, device=target.device)
        return codes[torch.searchsorted(self.labels, target.contiguous())]


def numbers(y: Any, like: torch.Tensor) -> tuple[torch.Tensor, NDArray[Any] | None]:
    """Return a target as a tensor of numbers on a device, floating ones in the model's type.

    Args:
        y: an array, a tensor or a data frame.
        like: a tensor of the model's device and type.

    Returns:
        The tensor, and the labels whose numbers they are where ``y`` has no numbers itself.

    Raises:
        SpecError: it is neither numbers nor labels.
    """
    labels = None
    if not isinstance(y, torch.Tensor):
        array = as_numpy(y)
        if array.dtype.kind not in "biuf":
            try:
                labels, array = np.unique(array, return_inverse=True)
            except TypeError as error:
                raise SpecError(
                    f"a Recipe's y must be numbers or labels of one kind: {error}"
                ) from error
            array = array.reshape(np.shape(y))
        if array.dtype.kind == "u":  # torch can't compute with most of them
            array = array.astype(np.int64)
        y = torch.tensor(array, device="cpu")
    floating = like.dtype if like.is_floating_point() else torch.get_default_dtype()
    return y.to(like.device, floating if y.is_floating_point() else torch.int64), labels


def form_of(
    loss: Loss, output: Any, target: torch.Tensor, rows: Any = slice(None), *, words: bool = False
) -> Form:
    """Return how ``loss`` takes a target.

    Args:
        loss: is called a few times, without gradients.
        output: what the model returned for ``rows``.
        target: the whole target, from :func:`numbers`.
        rows: which rows of it belong to the output.
        words: whether the target's numbers stand for labels that are no numbers.

    Raises:
        SpecError: it takes none: values that it can't train on, or shapes that only broadcast.
    """
    with torch.no_grad(), torch.random.fork_rng(devices=_cuda(target)):
        part = target[rows]
        # One row goes with anything.
        repeats = 2 if len(part) < 2 else 1
        output, part = _repeated(output, repeats), _repeated(part, repeats)
        floating = next((o.dtype for o in tensors(output)), torch.get_default_dtype())
        call = _known_call(loss, output, part, floating)
        labels, codes = codes_of(call, target, output, words, name_of_loss(loss))
        if words and call is not None and not call.classes:
            raise SpecError(
                f"a Recipe's y must be numbers for {name_of_loss(loss)} (encode labels as 0 … C−1)"
            )
        form = Form(floating, (), labels, codes)
        part = form.encoded(part)
        broadcast, first = None, None
        for dtype, tail in _forms(call, output, part, floating):
            form = replace(form, dtype=dtype, tail=tail)
            tried = part.to(dtype).reshape(len(part), *tail)
            watch = Watch(output, tried)
            try:
                with watch:
                    loss(output, tried)
            except Exception as error:
                first = first or error
                continue
            if watch.broadcast is None:
                call = watch.call
                if call is None:
                    return form if words else _by_trying(loss, output, form, target)
                if _same(call, output, tried):
                    return replace(form, classes=call.classes, tells=call.tells)
                continue
            broadcast = broadcast or watch.broadcast
    raise _refusal(loss, call, output, target, broadcast, first)


def _known_call(loss: Loss, output: Any, part: torch.Tensor, floating: torch.dtype) -> Call | None:
    """Return the known loss that is called in the end, whether it likes what it gets or not."""
    for dtype, tail in _forms(None, output, part, floating):
        watch = Watch(output, tried := part.to(dtype).reshape(len(part), *tail))
        try:
            with watch:
                loss(output, tried)
        except Exception:
            pass
        if watch.call is not None:
            return watch.call
    return None


def _forms(
    call: Call | None, output: Any, part: torch.Tensor, floating: torch.dtype
) -> Iterator[tuple[torch.dtype, tuple[int, ...]]]:
    """Yield types and shapes that a target can take without another meaning, the likeliest first.

    Shapes differ in dimensions of 1 only.
    """
    tail = tuple(part.shape[1:])
    tails = [tail]
    shapes = [tuple(o.shape) for o in tensors(output)]
    like = shapes[0][1:] if len(shapes) == 1 and shapes[0][:1] == (len(part),) else None
    alike = like is not None and [d for d in like if d != 1] == [d for d in tail if d != 1]
    if like is not None and alike:
        tails.insert(0, like)
    tails += [tuple(d for d in tail if d != 1), (1,) if tail == () else tail]
    whole = not part.is_floating_point() or bool((part == part.round()).all())
    types = [floating, torch.int64]
    if call is not None and call.values:
        types = [floating]
    elif call is not None or (not alike and not part.is_floating_point()):
        types = [torch.int64, floating]
    if not whole:
        types = [floating]
    yield from dict.fromkeys(itertools.product(types, tails))


def _same(call: Call, output: Any, target: torch.Tensor) -> bool:
    """Return whether floating numbers of classes are shares of them, one for each output."""
    if call.values or not target.is_floating_point():
        return True
    return all(o.shape == target.shape for o in tensors(output))


def _by_trying(loss: Loss, output: Any, form: Form, target: torch.Tensor) -> Form:
    """Find out what an unknown loss of two labels learns: their values, or to tell them apart.

    A loss of values is lowest where the output is the label, another one is not higher beyond it.

    Raises:
        SpecError: it does not depend on the output where a label is.
    """
    found = torch.unique(target)
    if not isinstance(output, torch.Tensor) or output.numel() != len(output) or len(found) != 2:
        return form

    def at(label: torch.Tensor, value: float) -> float:
        y = form.of(label.expand(len(output), *target.shape[1:]))
        return float(loss(torch.full_like(output, value), y).mean())

    low, high = found
    try:
        near = at(low, float(low)), at(high, float(high))
        far = at(low, float(low) - 9), at(high, float(high) + 9)
        wrong = at(low, float(high) + 9), at(high, float(low) - 9)
    except Exception:  # it looks at more than that
        return form
    for label, *losses in zip(found.tolist(), near, far, wrong, strict=True):
        if losses[0] == losses[1] == losses[2]:
            raise SpecError(
                f"{name_of_loss(loss)} is {losses[0]:g} where y is {label:g}, whatever the "
                "output is: a loss of margins wants labels -1 and 1"
            )
    if all(f > n for f, n in zip(far, near, strict=True)):
        return replace(form, classes=False, tells="value")
    apart = all(f <= n < w for f, n, w in zip(far, near, wrong, strict=True))
    return replace(form, classes=True) if apart else form


def _refusal(
    loss: Loss,
    call: Call | None,
    output: Any,
    target: torch.Tensor,
    broadcast: tuple[tuple[int, ...], tuple[int, ...]] | None,
    first: Exception | None,
) -> Exception:
    shapes = [tuple(o.shape) for o in tensors(output)]
    told = f"an output of shape {_rows(shapes[0])}" if shapes else "the model's output"
    y = f"a y of shape {_rows(tuple(target.shape))}"
    if broadcast is None and call is None and first is not None:
        return first  # the loss's own words, about something else than shapes
    wrong = f"{name_of_loss(loss)} can't take {told} with {y}"
    if broadcast is not None:
        wrong += ": it would broadcast one over the other"
    elif first is not None:
        wrong += f": {type(first).__name__}: {first}"
    return SpecError(
        f"{wrong}; build a model with one output for each column of y (for a loss of classes, one "
        "for each class), or reshape them in the loss"
    )


def _rows(shape: tuple[int, ...]) -> str:
    return f"(n, {', '.join(map(str, shape[1:]))})" if len(shape) > 1 else "(n,)"


def _mapped(output: Any, call: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(output, torch.Tensor):
        return call(output)
    if isinstance(output, dict):
        return type(output)({key: _mapped(one, call) for key, one in output.items()})
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return type(output)(*(_mapped(one, call) for one in output))
    if isinstance(output, list | tuple):
        return type(output)(_mapped(one, call) for one in output)
    return output


def _repeated(output: Any, times: int) -> Any:
    return _mapped(
        output, lambda one: torch.cat([one.detach()] * times) if one.ndim else one.detach()
    )


def _cuda(target: torch.Tensor) -> list[Any]:
    return [target.device] if target.device.type == "cuda" else []
