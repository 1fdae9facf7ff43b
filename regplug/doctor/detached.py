"""Terms of a loss that depend on weights and have no graph: ``p.data``, ``detach()``, ``item()``.

The graph does not show them, for they are not in it. So for a few steps it is followed what is
computed from weights alone, by torch's own mode for that, from the end of one step to the next
backward pass.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from numbers import Real
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from regplug.backend import private
from regplug.doctor import functional

__all__ = ["Follower"]

# Properties of a weight that are the weight still.
_PROPERTIES = ("data", "T", "mT", "H", "mH", "real")
_INDEPENDENT = ("_like", "new_", "shape", "size", "numel", "requires_grad", "register", "retain")
_ADDS = ("add", "add_", "__add__", "__radd__", "__iadd__", "sub", "sub_", "__sub__", "__isub__")
_NUMBERS = ("item", "__float__", "tolist")
_ARRAYS = ("numpy", "__array__")


class Follower(TorchFunctionMode):
    """Follows what is made of weights.

    Args:
        is_weight: whether a tensor is a weight that is examined.
        dropped: called with the rate of each dropout that is called, and whether it drops.

    Attributes:
        events: what was added to something with a graph, without one: the node of the sum, and the
            weights behind what was added.
        hindrance: why it could not start the last time, None where it could.
    """

    def __init__(
        self,
        is_weight: Callable[[torch.Tensor], bool],
        dropped: Callable[[float, bool], None] = lambda rate, drops: None,
    ) -> None:
        super().__init__()
        self._is_weight, self._dropped = is_weight, dropped
        self._made: Any = WeakIdKeyDictionary()
        self._plain: Any = WeakIdKeyDictionary()  # tensors made of numbers
        self._cut: Any = WeakIdKeyDictionary()  # the nodes of those without a weight in the graph
        self._numbers: list[tuple[float, frozenset[int]]] = []
        self._arrays: dict[frozenset[int], torch.Tensor] = {}  # what NumPy was given
        self._ratios: list[tuple[str, float, float]] = []
        self._on = self._paused = False
        self.events: list[tuple[Any, frozenset[int]]] = []
        self.hindrance: str | None = None

    # --- on and off ------------------------------------------------------------------------

    def start(self) -> bool:
        """Follow from now on, if no mode of others is in the way; return whether it did so."""
        if self._on:
            return False
        stack = private.function_modes()
        if _compiles():
            self.hindrance = "the program compiles parts of itself"
        elif stack is None:
            self.hindrance = f"torch {torch.__version__} does not tell of function modes"
        elif others := [mode for mode in stack if not private.is_device_mode(mode)]:
            self.hindrance = f"another function mode of torch is on ({type(others[-1]).__name__})"
        else:
            self.hindrance = None
            self.__enter__()  # type: ignore[no-untyped-call]
            self._on, self._paused = True, False
            self.events, self._numbers, self._arrays = [], [], {}
        return self.on

    @property
    def on(self) -> bool:
        """Whether it follows now."""
        return self._on and not self._paused

    def stop(self) -> bool:
        """Follow no more; return whether it did.

        While somebody's mode is on within this one, it stays without effect.
        """
        was_on, self._paused = self.on, True
        stack = private.function_modes()
        if self._on and stack and stack[-1] is self:
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self._on = False
        return was_on

    # --- what happens ----------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self._paused:
            return result
        try:
            if (found := functional.dropout_of(func, args, kwargs or {})) is not None:
                self._dropped(*found)
            self._note(func, list(_flat((*args, *(kwargs or {}).values()))), result)
        except Exception:  # it is the program that counts
            self._made.clear()
        return result

    def _note(self, func: Any, given: Sequence[Any], result: Any) -> None:
        name = getattr(func, "__name__", "")
        if name == "__get__":
            name = getattr(getattr(func, "__self__", None), "__name__", "")
            if name not in _PROPERTIES:
                return
        tensors = [thing for thing in given if isinstance(thing, torch.Tensor)]
        if isinstance(result, torch.Tensor):
            if name in _ADDS and result.grad_fn is not None and result.numel() == 1:
                self._added(given, tensors, result)
            self._made_of_numbers(name, given, tensors, result)
        behind = self._behind(tensors)
        if not behind or any(part in name for part in _INDEPENDENT):
            return
        if name in _NUMBERS and isinstance(result, float):
            self._numbers.append((result, behind))
            return
        if name in _ARRAYS:
            self._arrays[behind] = tensors[0].detach()
            return
        for made in _flat((result,)):
            own = any(made is tensor for tensor in tensors)
            if isinstance(made, torch.Tensor) and not (own and self._is_weight(made)):
                self._made[made] = behind
                if made.is_leaf or all(self._lacks_graph(tensor) for tensor in tensors):
                    self._cut[made] = made.grad_fn

    def _made_of_numbers(
        self, name: str, given: Sequence[Any], tensors: Sequence[torch.Tensor], result: torch.Tensor
    ) -> None:
        numbers = [thing for thing in given if isinstance(thing, float)]
        if name in ("tensor", "as_tensor", "scalar_tensor", "full", "Tensor", "FloatTensor"):
            if len(numbers) == 1:
                self._plain[result] = numbers[0]
        elif tensors and result.numel() == 1 and all(t in self._plain for t in tensors):
            self._plain[result] = float(result.detach())
        else:
            return
        self._cut[result] = result.grad_fn

    def _lacks_graph(self, tensor: torch.Tensor) -> bool:
        """Whether no weight is in the graph of what weights, or numbers, were made into."""
        # What something was added to in place has another node since.
        return not tensor.requires_grad or self._cut.get(tensor, self) is tensor.grad_fn

    def _behind(self, tensors: Sequence[torch.Tensor]) -> frozenset[int] | None:
        """Return the weights that all these are made of, None if there is anything else."""
        behind: frozenset[int] = frozenset()
        for tensor in tensors:
            if self._is_weight(tensor):
                behind |= {id(tensor)}
            elif (known := self._made.get(tensor)) is not None:
                behind |= known
            elif tensor.requires_grad or tensor.numel() != 1:
                return None
        return behind or None

    def _added(
        self, given: Sequence[Any], tensors: Sequence[torch.Tensor], result: torch.Tensor
    ) -> None:
        """Note what is added to a loss: a number or tensor without a graph, from weights alone."""
        if not any(not self._lacks_graph(t) and self._behind([t]) is None for t in tensors):
            return
        for thing in given:
            if isinstance(thing, torch.Tensor) and self._lacks_graph(thing):
                behind = self._made.get(thing)
                if behind:
                    self.events.append((result.grad_fn, behind))
                elif (number := self._number_of(thing)) is not None:
                    self._number_added(number, result)
            elif isinstance(thing, Real) and not isinstance(thing, int):
                self._number_added(float(thing), result)

    def _number_of(self, tensor: torch.Tensor) -> float | None:
        """Return what a tensor that is no part of a graph is, as far as it may be of numbers."""
        if (number := self._plain.get(tensor)) is not None:
            return float(number)
        # What NumPy gives back is made of nothing that was followed.
        unknown = self._arrays and tensor.numel() == 1 and tensor.device.type == "cpu"
        return float(tensor.detach()) if unknown and tensor not in self._made else None

    def _number_added(self, number: float, result: torch.Tensor) -> None:
        """Note a number that may be made of weights: a multiple of what was read of them."""
        if not number:
            return
        for kind, total, behind, exact in self._totals():
            if not total:
                continue
            ratio = number / total
            # Once may be chance. Twice, as the total changed, is not: of a constant the ratio
            # changes by as much as the total.
            for other_kind, other, before in self._ratios:
                apart, changed = abs(ratio / other - 1), abs(total / before - 1)
                if kind == other_kind and apart <= exact and changed > max(1e-9, 30 * apart):
                    self.events.append((result.grad_fn, behind))
                    break
            self._ratios.append((kind, ratio, total))

    def _totals(self) -> Iterator[tuple[str, float, frozenset[int], float]]:
        """Yield what a number may be a multiple of, the weights behind it, and how closely."""
        if self._numbers:
            behind = frozenset().union(*(leaves for _, leaves in self._numbers))
            yield "numbers", sum(value for value, _ in self._numbers), behind, 1e-6
        if self._arrays:
            behind = frozenset().union(*self._arrays)
            arrays = [array.double() for array in self._arrays.values()]
            squares = sum(float(array.square().sum()) for array in arrays)
            yield "sizes", sum(float(array.abs().sum()) for array in arrays), behind, 1e-5
            yield "squares", squares, behind, 1e-5
            yield "norms", sum(float(array.norm()) for array in arrays), behind, 1e-5
            yield "norm", squares**0.5, behind, 1e-5


def _flat(things: Any) -> Iterator[Any]:
    for thing in things:
        if isinstance(thing, list | tuple):
            yield from _flat(thing)
        else:
            yield thing


def _compiles() -> bool:
    """Whether the program compiles anything: a mode would have it compiled once more."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    counters = getattr(dynamo, "counters", None)
    return counters is not None and bool(counters["frames"])
