"""A formula in torch, called with symbols in place of tensors: what it does to them is recorded.

A symbol passes for a tensor (``isinstance``, methods, functions, operators), and has no elements.
So a formula whose course depends on elements can't be recorded, and a formula of numbers that
change from step to step is recorded with the numbers that it has now.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch

from regplug.kernels.expression import Recording

__all__ = ["Operation", "Symbol", "Tracing", "UntraceableError", "number_of", "refuse_out"]

Operation: TypeAlias = Callable[..., Any]
"""Records a call: given the tracing, and the arguments of the call."""


class UntraceableError(Exception):
    """A formula does what is not known here to be element by element; the message says what."""


class Symbol(torch.Tensor):
    """What a formula gets in place of a tensor, and each result that it makes of that.

    Attributes:
        tracing: where it is recorded.
        place: of the step that it is the result of.
        kind: ``"input"``, ``"float"``, ``"truth"``, or ``"total"``, a sum over all elements.
    """

    tracing: "Tracing"
    place: int
    kind: str

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Record a call."""
        name = func.__name__
        if name == "__get__":
            return _attribute(args[0], func.__self__.__name__)
        tracing = _tracing_of(args)
        operation = tracing.operations.get(name)
        if operation is not None:
            return operation(tracing, *args, **(kwargs or {}))
        if name[-1] == "_" and (operation := tracing.operations.get(name[:-1])) is not None:
            return _in_place(args[0], operation(tracing, *args, **(kwargs or {})))
        raise UntraceableError(f"it calls {name.strip('_')}")


class Tracing:
    """One formula's recording, and what its symbols answer about themselves.

    Args:
        dtype: in which the kernel will compute.
        device: of the tensors that the symbols stand for.
        operations: what records a call, by the name of the function or method.
    """

    def __init__(
        self, dtype: torch.dtype, device: torch.device, operations: Mapping[str, Operation]
    ) -> None:
        self.recording = Recording()
        self.operations = operations
        self.dtype = dtype
        self.device = device
        self._like = torch.empty(1, dtype=dtype, device="meta")

    def attribute(self, symbol: Symbol, name: str) -> Any:
        """Return what a symbol answers of its shape. There is none where all is element by element.

        Raises:
            UntraceableError: nothing is known of it.
        """
        raise UntraceableError(f"it looks at .{name}")

    def iterated(self, body: Callable[[Any], Any], start: Symbol, rounds: int) -> Symbol:
        """Return the symbol of what a loop ends with.

        Raises:
            UntraceableError: loops are not recorded.
        """
        raise UntraceableError("it iterates")

    def column(self, kind: str = "input") -> Symbol:
        """Return the symbol of a further column: ``"input"``, or ``"scalar"`` for 0-d tensors."""
        self.recording.columns += 1
        place = self.recording.step(kind, self.recording.columns - 1)
        return self.symbol(place, "input")

    def result(self, *step: str | int, kind: str = "float") -> Symbol:
        """Return the symbol of a new step's result."""
        return self.symbol(self.recording.step(*step), kind)

    def place(self, operand: Any) -> int:
        """Return the place of an operand, which may be a number or a 0-d tensor on the CPU."""
        if type(operand) is Symbol:
            if operand.kind == "truth":
                return self.recording.step("number_of", operand.place)
            if operand.kind == "total":
                raise UntraceableError("it uses a sum over all elements")
            return operand.place
        return self.recording.number(number_of(operand))

    def symbol(self, place: int, kind: str = "float") -> Symbol:
        """Return the symbol of a step's result."""
        symbol = self._like.as_subclass(Symbol)
        symbol.tracing, symbol.place, symbol.kind = self, place, kind
        return symbol


def number_of(operand: Any) -> float:
    """Return an operand that is a number, or a 0-d tensor on the CPU, as it is now."""
    if isinstance(operand, bool | int | float):
        return float(operand)
    if isinstance(operand, torch.Tensor) and operand.ndim == 0 and type(operand) is not Symbol:
        if operand.is_cpu and not operand.is_complex():
            return float(operand)
        raise UntraceableError("it reads a tensor of its own on another device")
    if isinstance(operand, torch.Tensor) and type(operand) is not Symbol:
        raise UntraceableError("it uses a tensor of its own")
    raise UntraceableError(f"it uses a {type(operand).__name__} as a number")


def refuse_out(out: Any) -> None:
    """Raise :class:`UntraceableError` if a call writes into memory of its own."""
    if out is not None:
        raise UntraceableError("it writes into memory of its own (out=…)")


def _tracing_of(args: Sequence[Any]) -> Tracing:
    for argument in args:
        if type(argument) is Symbol:
            return argument.tracing
    raise UntraceableError("it hands tensors on in a list or by keyword")


def _attribute(symbol: Symbol, name: str) -> Any:
    if name in ("dtype", "device"):
        return getattr(symbol.tracing, name)
    if name in ("is_cpu", "is_cuda", "is_mps", "is_xpu"):
        return symbol.tracing.device.type == name[3:]
    if name in ("data", "real") and symbol.kind != "total":
        return symbol
    if name == "layout":
        return torch.strided
    if name in ("is_meta", "is_sparse", "is_quantized", "is_nested", "requires_grad"):
        return False
    return symbol.tracing.attribute(symbol, name)


def _in_place(symbol: Symbol, result: Symbol) -> Symbol:
    if symbol.kind in ("input", "total"):
        raise UntraceableError("it changes its argument in place")
    symbol.place, symbol.kind = result.place, result.kind
    return symbol
