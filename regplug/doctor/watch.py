"""Looking at backward passes and steps of a program, for every run that is examined."""

import gc
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim import optimizer as optim_module

from regplug.backend.backwards import Listening
from regplug.doctor.graph import Terms, terms_of
from regplug.doctor.readings import Readings
from regplug.doctor.run import Run

__all__ = ["Watch"]


class Watch:
    """Tells runs of what happens. A context manager; several may be on at once.

    Args:
        runs: the runs, which may grow in the meantime.
        unknown: called with the roots of each backward pass before it is looked at.
    """

    def __init__(
        self,
        runs: list[Run],
        unknown: Callable[[Sequence[torch.Tensor]], None] = lambda roots: None,
    ) -> None:
        self.runs, self._unknown = runs, unknown
        self._scalers: list[weakref.ref[Any]] | None = None
        self._undo: list[Callable[[], None]] = []
        self._passes = 0

    def __enter__(self) -> "Watch":
        self._undo = [
            Listening(self._backward_begins, self._backward_ends).remove,
            optim_module.register_optimizer_step_pre_hook(self._step_begins).remove,
            optim_module.register_optimizer_step_post_hook(self._step_ends).remove,
        ]
        return self

    def __exit__(self, *error: object) -> None:
        while self._undo:
            self._undo.pop()()

    # --- backward --------------------------------------------------------------------------

    def _backward_begins(
        self, roots: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor] | None
    ) -> tuple[list[Run], Terms, Readings] | None:
        self._unknown(roots)
        runs = [run for run in self.runs if run.looking]
        if not runs:
            return None
        try:
            wanted = None if inputs is None else {id(tensor) for tensor in inputs}
            if wanted is not None and not any(
                run.leaf(tensor) for run in runs for tensor in inputs or ()
            ):
                return None
            for run in runs:
                run.begins()
            terms = terms_of(roots, lambda leaf: any(run.leaf(leaf) for run in runs))
            return runs, terms, Readings(terms)
        except Exception as error:  # it is the program that counts
            _tell(runs, error)
            return None

    def _backward_ends(self, token: tuple[list[Run], Terms, Readings] | None) -> None:
        if token is None:
            return
        runs, terms, readings = token
        try:
            read = readings.results()
            scale = self._loss_scale()
            for run in runs:
                run.with_data = run.with_data or terms.data
                for name in terms.hidden:
                    run.trouble(
                        f"{name} is one node of a compiled graph: penalties inside it can't be seen"
                    )
                run.ended(list(terms.leaves), read, scale)
        except Exception as error:
            _tell(runs, error)

    def _loss_scale(self) -> float:
        """Return what a living GradScaler multiplies losses by, 1 without one."""
        if self._scalers is None or self._passes < 3:
            self._passes += 1
            kinds = tuple({torch.amp.GradScaler, *torch.amp.GradScaler.__subclasses__()})
            found = [thing for thing in gc.get_objects() if type(thing) in kinds]
            self._scalers = [weakref.ref(thing) for thing in found]
        scales = [
            float(scaler.get_scale())
            for ref in self._scalers
            if (scaler := ref()) is not None and scaler.is_enabled()
        ]
        return scales[0] if scales else 1.0

    # --- steps -----------------------------------------------------------------------------

    def _of(self, optimizer: Optimizer) -> Run | None:
        for run in self.runs:
            if run.optimizer is optimizer:
                return run
        return None

    def _step_begins(self, optimizer: Optimizer, arguments: Any, keywords: Any) -> None:
        run = self._of(optimizer)
        if run is not None:
            try:
                run.step_begins(self._loss_scale() if run.looking else 1.0)
            except Exception as error:
                _tell([run], error)

    def _step_ends(self, optimizer: Optimizer, arguments: Any, keywords: Any) -> None:
        run = self._of(optimizer)
        if run is not None:
            try:
                run.step_ends()
            except Exception as error:
                _tell([run], error)


def _tell(runs: Sequence[Run], error: Exception) -> None:
    for run in runs:
        run.trouble(f"a look failed: {type(error).__name__}: {error}")
