"""The decay of each kind of weight in one optimizer, measured once for each set of numbers."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from regplug.backend import wrapped
from regplug.backend.groups import Group, number
from regplug.doctor.decay import Measured, measure
from regplug.doctor.tracks import Track

__all__ = ["Decays"]


class Decays:
    """Measures, and remembers what it measured.

    Args:
        optimizer: a torch optimizer, unwrapped.
        trouble: is told what could not be measured, and why.

    Attributes:
        unmeasured: whether there is a decay that could not be measured.
    """

    def __init__(self, optimizer: Optimizer, trouble: Callable[[str], None]) -> None:
        self.optimizer, self._trouble = optimizer, trouble
        self.unmeasured = False
        self._known: dict[Any, Measured | None] = {}
        self._lr0: dict[int, float] = {}
        self._max_lr: dict[int, float] = {}

    def note_rates(self) -> None:
        """See the learning rates of a step."""
        for index, group in enumerate(self.optimizer.param_groups):
            lr = number(group, "lr", 1.0)
            self._lr0.setdefault(index, number(group, "initial_lr", lr))
            largest = self._max_lr.get(index, 0.0), lr, number(group, "max_lr")
            self._max_lr[index] = max(largest)

    def of(self, track: Track, tracks: Sequence[Track]) -> Measured | None:
        """Return the decay of a weight, as those of its kind among ``tracks`` are decayed."""
        group = self.optimizer.param_groups[track.group]
        key = (track.group, track.parameter.ndim, *_numbers(group))
        if key not in self._known:
            self._known[key] = self._measured(track, tracks, group)
        return self._known[key]

    def _measured(self, track: Track, tracks: Sequence[Track], group: Group) -> Measured | None:
        # The smallest of its kind is like the others.
        index, ndim = track.group, track.parameter.ndim
        alike = [t.parameter for t in tracks if t.group == index and t.parameter.ndim == ndim]
        smallest = min(alike, key=torch.Tensor.numel)
        optimizer = wrapped.share_of(self.optimizer) or self.optimizer
        try:
            return measure(optimizer, group, smallest, self._lr0[index], self._max_lr[index])
        except Exception as error:
            self.unmeasured = True
            self._trouble(
                f"the decay of {type(self.optimizer).__name__} could not be measured on a copy: "
                f"{type(error).__name__}: {error}"
            )
            return None


def _numbers(group: Group) -> Iterator[Any]:
    """Yield the numbers of a group, of which its decay is made."""
    for key, value in group.items():
        if isinstance(value, torch.Tensor) and value.numel() == 1:
            yield key, float(value)
        elif isinstance(value, float | bool):
            yield key, value
