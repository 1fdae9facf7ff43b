"""What a loss says of its target, seen while it is called once.

A loss is any callable. Whichever function of ``torch.nn.functional`` it calls in the end says what
the target must be (values like the output's, or numbers of classes), and what the output means (a
value, a logit, scores of classes). Where it computes with operators alone, one still sees whether
output and target broadcast.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["Call", "Tells", "Watch", "last_operation", "tensors"]

Tells: TypeAlias = Literal["value", "log", "logit", "probability", "scores", "distance"]
"""What an output is: the value itself, its logarithm, the log-odds of a class, its probability,
scores of all classes before the softmax, or a distance, of which no class can be told."""

_VALUES: dict[Callable[..., Any], Tells] = {
    F.mse_loss: "value",
    F.l1_loss: "value",
    F.smooth_l1_loss: "value",
    F.huber_loss: "value",
    F.gaussian_nll_loss: "value",
    F.poisson_nll_loss: "log",
    F.kl_div: "log",
    F.binary_cross_entropy: "probability",
    F.binary_cross_entropy_with_logits: "logit",
    F.multilabel_soft_margin_loss: "logit",
    F.soft_margin_loss: "logit",
    F.hinge_embedding_loss: "distance",
}
_CLASSES: dict[Callable[..., Any], Tells] = {
    F.cross_entropy: "scores",
    F.nll_loss: "scores",
    F.multi_margin_loss: "scores",
    F.multilabel_margin_loss: "value",
}
# fmt: off
_KEEPING = frozenset((
    "__getitem__", "clamp", "clamp_max", "clamp_min", "clip", "clone", "contiguous", "cpu",
    "cuda", "detach", "double", "expand", "flatten", "float", "half", "bfloat16", "movedim",
    "narrow", "numpy", "permute", "ravel", "reshape", "select", "squeeze", "swapaxes", "t",
    "to", "transpose", "type", "type_as", "unflatten", "unsqueeze", "view", "view_as",
))
# fmt: on
"""Operations that leave a tensor's meaning as it was."""

# After softmax of raw scores they are scores still; a sigmoid of a logit is its probability.
_TURNED: dict[str, Tells] = {
    "sigmoid": "logit",
    "expit": "logit",
    "softmax": "scores",
    "log_softmax": "scores",
    "exp": "log",
}
# fmt: off
_ELEMENTWISE = frozenset((
    "add", "sub", "subtract", "mul", "multiply", "div", "divide", "true_divide", "rsub", "pow",
    "maximum", "minimum", "fmax", "fmin", "where", "xlogy", "logaddexp", "atan2", "hypot",
    "lerp", "gt", "ge", "lt", "le", "eq", "ne", "__add__", "__sub__", "__mul__", "__truediv__",
    "__pow__", "__radd__", "__rsub__", "__rmul__", "__rdiv__", "__rtruediv__", "__rpow__",
    "__gt__", "__ge__", "__lt__", "__le__", "__eq__", "__ne__",
))
# fmt: on
_OF_SIGNS = ("soft_margin_loss", "hinge_embedding_loss")
_OF_CLASSES = (
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "multilabel_soft_margin_loss",
    *_OF_SIGNS,
)


@dataclass(frozen=True)
class Call:
    """A call of a loss that is known.

    Attributes:
        name: the function's.
        values: whether it wants floating values like the output's, not numbers of classes.
        signs: whether these values are −1 and 1.
        tells: what the model's output is, None if it went through something unknown before.
        columns: how many scores of classes there were, for those that want numbers of classes.
        ignored: the number of a class that is passed over.
    """

    name: str
    values: bool
    signs: bool
    tells: Tells | None
    columns: int | None
    ignored: int | None

    @property
    def classes(self) -> bool:
        """Whether what is learned are classes."""
        return not self.values or self.name in _OF_CLASSES


class Watch(TorchFunctionMode):
    """Sees which known loss gets what became of an output and a target, and what broadcasts.

    Args:
        output: what the model returned; a tensor, or tensors in lists, tuples and dicts.
        target: the target that the loss is called with.

    Attributes:
        call: the first known loss that got both, or None.
        broadcast: the shapes of an output and a target that broadcast, or None.
    """

    def __init__(self, output: Any, target: torch.Tensor) -> None:
        super().__init__()
        self.call: Call | None = None
        self.broadcast: tuple[tuple[int, ...], tuple[int, ...]] | None = None
        # By id, with the tensors themselves, whose ids would be given away otherwise.
        self._outputs = {id(one): (one, "raw") for one in tensors(output)}
        self._targets = {id(target): target}
        self._shapes = {tuple(one.shape) for one in tensors(output)}, tuple(target.shape)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = list(tensors((args, kwargs)))
        outputs = [one for one in given if id(one) in self._outputs]
        targets = [one for one in given if id(one) in self._targets]
        if outputs and targets:
            self._see(func, args, kwargs, outputs[0], targets[0])
        found = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        for one in tensors(found):
            if outputs:
                self._outputs.setdefault(id(one), (one, self._became(name, outputs[0])))
            elif targets:
                self._targets.setdefault(id(one), one)
        return found

    def _became(self, name: str, output: torch.Tensor) -> str:
        before = self._outputs[id(output)][1]
        if name in _KEEPING:
            return before
        return name if before == "raw" else "other"

    def _see(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: torch.Tensor,
        target: torch.Tensor,
    ) -> None:
        known = func in _VALUES or func in _CLASSES
        if known and self.call is None:
            self.call = self._known(func, args, kwargs, output)
        name = getattr(func, "__name__", "")
        if self.broadcast is None and (
            (func in _VALUES and output.shape != target.shape)
            or (name in _ELEMENTWISE and self._mixes_rows(output, target))
        ):
            self.broadcast = tuple(output.shape), tuple(target.shape)

    def _known(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: torch.Tensor
    ) -> Call:
        name, became = func.__name__, self._outputs[id(output)][1]
        tells: Tells | None = _VALUES.get(func) or _CLASSES[func]
        log_input = kwargs.get("log_input", args[2] if len(args) > 2 else True)
        if name == "poisson_nll_loss" and not log_input:
            tells = "value"
        if became != "raw":
            # The loss reads what it got; the model's output is what was turned into that.
            fits = tells in ("probability", "value") or (
                tells == "scores" and became.endswith("softmax")
            )
            tells = _TURNED.get(became) if fits else None
        indices = func in _CLASSES and name != "multilabel_margin_loss"
        columns = output.shape[1 if output.ndim > 1 else 0] if indices and output.ndim else None
        ignored = kwargs.get("ignore_index") if indices else None
        return Call(name, func in _VALUES, name in _OF_SIGNS, tells, columns, ignored)

    def _mixes_rows(self, output: torch.Tensor, target: torch.Tensor) -> bool:
        """Return whether rows meet other things than rows, or columns are spread over others.

        Where somebody reshaped one of them for it, by ``target[:, None]`` say, it is meant.
        """
        rows = self._shapes[1][0]
        short, long = sorted((output.shape, target.shape), key=len)
        if len(short) < len(long):
            return bool(short) and short[0] == rows and long[0] == rows
        shapes, of_target = self._shapes
        return output.shape != target.shape and (
            tuple(output.shape) in shapes and tuple(target.shape) == of_target
        )


class _Last(TorchFunctionMode):
    """Keeps the name of the operation that each tensor, or array of one, came from last."""

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[int, tuple[Any, str]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in _KEEPING:
            given = next(tensors((args, kwargs)), None)
            name = self.names.get(id(given), (None, ""))[1]
        self.names[id(found)] = found, name
        return found


def last_operation(call: Callable[[], Any]) -> str:
    """Return which operation made what ``call`` returns, shapes and types left aside.

    >>> last_operation(lambda: torch.sigmoid(torch.ones(3, 1, device="cpu")).squeeze(1).numpy())
    'sigmoid'
    """
    last = _Last()
    with last:
        found = call()
    return last.names.get(id(found), (None, ""))[1]


def tensors(found: Any) -> Iterator[torch.Tensor]:
    """Yield a tensor, or those in lists, tuples and dicts."""
    if isinstance(found, torch.Tensor):
        yield found
    elif isinstance(found, list | tuple):
        for one in found:
            yield from tensors(one)
    elif isinstance(found, dict):
        for one in found.values():
            yield from tensors(one)
