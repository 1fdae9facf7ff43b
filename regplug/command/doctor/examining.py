"""Examining whatever a program trains, while it runs and without a word from it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as nn_module
from torch.optim import Optimizer

from regplug.backend import private, wrappers
from regplug.backend.gradless import Gradless
from regplug.doctor.report import RunReport
from regplug.doctor.run import Run
from regplug.doctor.watch import Watch
from regplug.errors import RegplugError
from regplug.finding import search
from regplug.finding.finder import Finder
from regplug.finding.naming import class_names, names_of_optimizer

__all__ = ["Examiner"]

# So often the forward hook is put back for an evaluation between looks.
_EVALUATIONS = 1000
# So many runs are told of, and looked at.
_MOST = 16


class Examiner:
    """Examines every optimizer that steps while it is on, and its model. A context manager.

    Args:
        steps: at so many first steps of each it is looked.

    Attributes:
        runs: what was seen.
        missed: optimizers that were not looked at, and why.
    """

    def __init__(self, steps: int) -> None:
        self.runs: list[Run] = []
        self.missed: list[str] = []
        self._first = steps
        self._finder = Finder(self._found, self._stepping)
        self._watch = Watch(self.runs, self._backward)
        self._searched = False
        self._hook: Any = None
        self._gradless: Gradless | None = None
        self._evaluations = 0

    def __enter__(self) -> "Examiner":
        self._finder.__enter__()
        self._watch.__enter__()
        self._rehook()
        self._gradless = Gradless(self._evaluating)
        return self

    def __exit__(self, *error: object) -> None:
        if self._gradless is not None:
            self._gradless.remove()
        self._unhook()
        self._watch.__exit__(*error)
        self._finder.__exit__(*error)

    def reports(self) -> list[RunReport]:
        """Return what is told of each run that made a step."""
        return [RunReport(run) for run in self.runs if run.steps]

    # --- what happens ----------------------------------------------------------------------

    def _found(self, optimizers: Sequence[Optimizer]) -> None:
        for optimizer in optimizers:
            self._examine(optimizer)

    def _stepping(self, optimizer: Optimizer) -> None:
        self._rehook()
        if optimizer in self._finder.known:
            return
        try:
            if self._finder.works_for_a_known_one(optimizer) or search.passes_on(optimizer):
                return
        except RegplugError as error:
            self._miss(optimizer, error)
            return
        self._examine(optimizer)

    def _backward(self, roots: Sequence[torch.Tensor]) -> None:
        # A model of bare tensors calls no module: its optimizer is found at the first backward.
        if not self._searched and not self.runs:
            self._searched = True
            self._found([o for o in search.optimizers() if o not in self._finder.known])

    def _examine(self, optimizer: Optimizer) -> None:
        self._finder.known.add(optimizer)
        try:
            model = search.model_of(optimizer, self._finder.called_now())
            names = [*search.names_of(model), *class_names(model)]
            *_, bare = wrappers.layers(model)
            if len(self.runs) >= _MOST:
                raise RegplugError(f"{_MOST} others were looked at")
            title = (names[0], names_of_optimizer(optimizer)[-1])
            self.runs.append(Run(bare, optimizer, self._first, title))
            for run in self.runs:
                run.alone = len(self.runs) == 1
        except Exception as error:
            self._miss(optimizer, error)

    def _miss(self, optimizer: Optimizer, error: Exception) -> None:
        self._finder.known.add(optimizer)
        self.missed.append(f"{type(optimizer).__name__} was not looked at: {error}")

    def _forward(self, module: nn.Module, arguments: Any) -> None:
        if torch.compiler.is_compiling():
            return
        if torch.is_grad_enabled():
            for run in self.runs:
                run.dropouts.trains_with(module)
            return
        called = private.compiled_inside(module) or module
        for run in self.runs:
            if called is run.model:
                self._watch.called(run, module)
                if not any(other.looking for other in self.runs):
                    self._unhook()
            else:
                run.dropouts.part_called(module)

    def _evaluating(self) -> None:
        """Look at the next forward, which an evaluation has, wherever in the run that is."""
        if self._hook is None and self._evaluations < _EVALUATIONS:
            self._evaluations += 1
            self._hook = nn_module.register_module_forward_pre_hook(self._forward)

    def _rehook(self) -> None:
        """Look at forwards while some run is looked at, so that the others cost nothing."""
        looking = not self.runs or any(run.looking for run in self.runs)
        if looking and self._hook is None:
            self._hook = nn_module.register_module_forward_pre_hook(self._forward)
        elif not looking:
            self._unhook()

    def _unhook(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
