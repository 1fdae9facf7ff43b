"""Checks of what a step costs: in operations and in memory, counted and not timed."""

import math
import sys
import tracemalloc
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import regplug
from regplug.errors import RegplugError
from regplug.testing.bench import Setup
from regplug.testing.checks.auditing import audited
from regplug.testing.places import is_own
from regplug.testing.registry import Case, check
from regplug.testing.subject import Failure, Skip, Subject

__all__: list[str] = []

ROWS, COLUMNS, LAYERS, TIMES = 8, 16, 2, 4
_BYTES = "bytes outside of torch"
# Linear is TIMES, n·log n a little more, quadratic TIMES².
MOST = TIMES**1.5
EARLY, LATE = 4, 44
_NOISE = 20_000  # bytes that Python takes in one step and not in another
MANY = 16  # tensors, of which all pairs are more than a few lines


class Stack(nn.Module):
    """Equal layers side by side, whose number and size are what a cost depends on."""

    def __init__(self, rows: int, columns: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(columns, rows, bias=False) for _ in range(layers)])
        self.act = nn.ReLU()
        self.drop = nn.Dropout(0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the means of what all layers make of ``x``, of shape ``(N, 1)``."""
        outs = [layer(x).mean(1) for layer in self.layers]
        means: torch.Tensor = self.drop(self.act(torch.stack(outs, 1))).mean(1, keepdim=True)
        return means


class _Loop:
    """Steps on a stack, with a plugin or without."""

    def __init__(self, setup: Setup | None, rows: int, columns: int, layers: int) -> None:
        torch.manual_seed(0)
        self.model = Stack(rows, columns, layers)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)
        self.x = torch.ones(2, columns)
        self.session = None
        if setup is not None:
            try:
                self.session = regplug.attach(self.model, self.optimizer, [setup.make()])
            except RegplugError as error:
                raise Skip(f"it does not fit a model of equal layers: {error}") from error

    def backward(self) -> None:
        """Compute the gradients of a step."""
        self.optimizer.zero_grad()
        loss = self.model(self.x).mean()
        (loss if self.session is None else self.session.loss(loss)).backward()

    def step(self) -> None:
        """Make a step."""
        self.backward()
        self.optimizer.step()

    def run(self, steps: int) -> None:
        """Make that many."""
        for _ in range(steps):
            self.step()


def _leaves(thing: object) -> Iterator[object]:
    """Yield what is in lists, tuples and dicts, however deep."""
    if isinstance(thing, list | tuple):
        for part in thing:
            yield from _leaves(part)
    elif isinstance(thing, dict):
        yield from _leaves(list(thing.values()))
    else:
        yield thing


class _Elements(TorchDispatchMode):
    """Counts the elements of all tensors that operations read and write."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in _leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
        self.count += sum(t.numel() for t in tensors)
        return out


@contextmanager
def _lines(counted: list[int]) -> Iterator[None]:
    """Count the lines of Python that the plugin executes."""

    def local(frame: FrameType, event: str, argument: object) -> Any:
        counted[0] += event == "line"
        return local

    def called(frame: FrameType, event: str, argument: object) -> Any:
        return local if is_own(frame.f_code.co_filename) else None

    before = sys.gettrace()
    sys.settrace(called)
    try:
        yield
    finally:
        sys.settrace(before)


def _work(loop: _Loop) -> dict[str, int]:
    """Return what one step takes, by the unit in which it is counted."""
    lines = [0]
    tracemalloc.start()
    try:
        start, _ = tracemalloc.get_traced_memory()
        with _Elements() as elements, _lines(lines):
            loop.step()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return {
        "elements of tensors": elements.count,
        "lines of Python": lines[0],
        _BYTES: peak - start,
    }


def _extra(setup: Setup, *size: int) -> dict[str, int]:
    """Return what a step takes with the plugin beyond what it takes without."""
    found, plain = _Loop(setup, *size), _Loop(None, *size)
    for loop in (found, plain):
        loop.run(2)
    without = _work(plain)
    return {unit: max(count - without[unit], 0) for unit, count in _work(found).items()}


@check("cost")
def cost(subject: Subject) -> Iterable[Case]:
    """A step's work grows no faster than the weights and their number, and not with the steps."""
    setup = subject.loud(subject.deliveries[0])

    def taken(larger: int, more: int, usual: dict[str, int]) -> dict[str, int]:
        # A product of a matrix with itself is quadratic in one of its dimensions, and products
        # from both sides in either, though linear in the weights of a matrix that keeps its shape.
        side = math.isqrt(larger)
        found: dict[str, int] = {}
        for rows, columns in ((larger, 1), (1, larger), (side, side)):
            counts = _extra(setup, ROWS * rows, COLUMNS * columns, LAYERS * more)
            found = {unit: min(count, found.get(unit, count)) for unit, count in counts.items()}
            if larger == 1 or not _steep(usual, found):
                break
        return found

    def sizes() -> None:
        usual = _extra(setup, ROWS, COLUMNS, LAYERS)
        for what, larger, more in (("weights in each tensor", 1, 0), ("tensors", 0, 1)):
            once = taken(TIMES**larger, TIMES**more, usual)
            steep = _steep(usual, once)
            if steep and steep <= {"elements of tensors", _BYTES}:
                # Iterations that converge take a few more, and Python a few thousand bytes now and
                # then; what is quadratic stays so.
                steep &= _steep(once, taken(TIMES ** (2 * larger), TIMES ** (2 * more), once))
            for unit in sorted(steep, key=[*usual].index):
                raise Failure(
                    f"with {TIMES} times as many {what} a step takes "
                    f"{once[unit] / max(usual[unit], 1):.0f} times as many {unit} "
                    f"({once[unit]} instead of {usual[unit]})"
                )

    def steps() -> None:
        loop = _Loop(setup, ROWS, COLUMNS, LAYERS)
        loop.run(EARLY - 2)
        with audited() as waits:
            loop.step()
        if waits:
            raise Failure(f"in a step {waits[0]}, for which the device waits: do it in a thread")
        early = _work(loop)
        loop.run(LATE - EARLY - 1)
        for unit, count in _work(loop).items():
            if count > 1.5 * early[unit] + (_NOISE if unit == _BYTES else 2000):
                raise Failure(
                    f"step {LATE} takes {count} {unit}, where step {EARLY} took {early[unit]}"
                )

    def lines(
        words: str, one: tuple[int, ...], other: tuple[int, ...], most: float, advice: str
    ) -> None:
        some, more = (_extra(setup, *each)["lines of Python"] for each in (one, other))
        if more > most * max(some, 200):
            raise Failure(
                f"with {words} a step takes {more / max(some, 1):.0f} times as many lines of "
                f"Python ({more} instead of {some}): {advice}"
            )

    # Rows may be gone through one by one in Python, but not all elements, or pairs of rows.
    elements = partial(
        lines,
        "4 times as many weights in each tensor",
        (ROWS, COLUMNS, LAYERS),
        (2 * ROWS, 2 * COLUMNS, LAYERS),
        2**1.5,
        "leave it to torch to go through elements",
    )
    # Of loops in Python over all pairs of tensors little is seen with few of them.
    pairs = partial(
        lines,
        f"{TIMES} times as many tensors",
        (1, 2, MANY),
        (1, 2, TIMES * MANY),
        MOST,
        "look up by a dict what belongs to a weight, and go through all weights once",
    )

    yield f"more weights, {setup.regime}", sizes
    yield f"larger tensors, {setup.regime}", elements
    yield f"more tensors, {setup.regime}", pairs
    yield f"more steps, {setup.regime}", steps


def _steep(usual: dict[str, int], found: dict[str, int]) -> set[str]:
    """Return the units of which there are more than a linear cost explains."""
    # What does not depend on the size hides what does, and so few are not worth a word.
    return {
        unit
        for unit, count in usual.items()
        if found[unit] > MOST * max(count, 200) and found[unit] - count > _NOISE
    }


# --- memory -----------------------------------------------------------------------------------

SIDE, TENSORS = 512, 24


class _Storages(TorchDispatchMode):
    """Follows the memory of tensors that are made while it is on."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive, self.peak = 0, 0
        self._seen: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {
            t.untyped_storage().data_ptr()
            for t in _leaves((args, kwargs))
            if isinstance(t, torch.Tensor)
        }
        out = func(*args, **(kwargs or {}))
        for t in _leaves(out):
            if not isinstance(t, torch.Tensor) or t.device.type == "meta":
                continue
            storage = t.untyped_storage()
            if storage.data_ptr() in given or id(storage) in self._seen:
                continue
            self._follow(storage, storage.nbytes())
        return out

    def _follow(self, storage: Any, size: int) -> None:
        key = id(storage)

        def gone(_: object) -> None:
            self.alive -= size
            self._seen.pop(key, None)

        self._seen[key] = weakref.ref(storage, gone)
        self.alive += size
        self.peak = max(self.peak, self.alive)


@check("memory", after=("cost",))
def memory(subject: Subject) -> Iterable[Case]:
    """A step needs no memory of the model's size beyond what it keeps."""

    def run(setup: Setup) -> None:
        loop = _Loop(setup, SIDE, SIDE, TENSORS)
        loop.run(2)
        loop.backward()
        tracemalloc.start()
        try:
            with _Storages() as storages:
                loop.optimizer.step()
            end, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        whole = 4 * SIDE * SIDE * TENSORS
        for what, used in (
            ("tensors", storages.peak - storages.alive),
            ("other objects", peak - end),
        ):
            if used > whole / 2:
                raise Failure(
                    f"a step needs {used / 2**20:.0f} MiB of {what} for a moment, on a model of "
                    f"{whole / 2**20:.0f} MiB in {TENSORS} tensors: go through them one after "
                    "another, in place"
                )

    setup = subject.loud(subject.deliveries[0])
    if setup.delivery == "loss":
        raise Skip("it is delivered in the loss, where the graph keeps what it needs")
    yield setup.regime, partial(run, setup)
