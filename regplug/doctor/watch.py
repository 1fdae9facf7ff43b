"""Looking at backward passes and steps of a program, for every run that is examined."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim import optimizer as optim_module

from regplug.backend.backwards import Listening
from regplug.backend.eager import called_by_a_graph, eagerly
from regplug.backend.living import living
from regplug.backend.reductions import Reductions
from regplug.doctor.detached import Follower
from regplug.doctor.graph import Terms, terms_of
from regplug.doctor.readings import Readings
from regplug.doctor.run import Run

__all__ = ["Watch"]

# After so many steps it is followed what is made of weights.
_FOLLOWED = 6
# So often it is searched for a GradScaler among all objects, which takes a while.
_SEARCHES = 3


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
        self._scalers: list[weakref.ref[Any]] = []
        self._undo: list[Callable[[], None]] = []
        self._searches = 0
        self._follower = Follower(
            lambda tensor: any(run.leaf(tensor) for run in self.runs), self._dropped
        )
        self._followed = 0
        self._last_hook: Any = None

    def __enter__(self) -> "Watch":
        self._undo = [
            Listening(self._backward_begins, self._backward_ends).remove,
            Reductions(self._summed).remove,
            optim_module.register_optimizer_step_pre_hook(self._step_begins).remove,
            optim_module.register_optimizer_step_post_hook(self._step_ends).remove,
        ]
        return self

    def __exit__(self, *error: object) -> None:
        self._follower.stop()
        self._unhook()
        while self._undo:
            self._undo.pop()()

    # --- evaluations -----------------------------------------------------------------------

    def called(self, run: Run, module: nn.Module) -> None:
        """The model of a run is called; see what drops, if it is for no gradient."""
        if torch.is_grad_enabled():
            return
        run.dropouts.called()
        began = self._follows([run])
        if not (began or self._follower.on) or run.dropouts.evaluating:
            return
        run.dropouts.evaluating = True

        def ends(*arguments: Any) -> None:
            run.dropouts.evaluating = False
            handle.remove()
            if began:
                self._follower.stop()

        handle = module.register_forward_hook(ends, always_call=True)

    def _dropped(self, rate: float, drops: bool) -> None:
        for run in self.runs:
            run.dropouts.dropped(rate, drops)

    # --- backward --------------------------------------------------------------------------

    def _backward_begins(
        self, roots: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor] | None
    ) -> tuple[list[Run], Terms, Readings] | None:
        if self._follower.stop():
            for run in self.runs:
                run.dropouts.followed = True
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
            for node, weights in self._follower.events:
                if node in terms.nodes:
                    for run in runs:
                        run.lost.update(weights)
            self._may_be_scaled(roots)
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
                run.hidden = run.hidden or bool(terms.hidden)
                for name in terms.hidden:
                    run.trouble(
                        f"{name} is one node of a compiled graph: penalties inside it can't be seen"
                    )
                run.ended(list(terms.leaves), read, scale)
        except Exception as error:
            _tell(runs, error)

    def _may_be_scaled(self, roots: Sequence[torch.Tensor]) -> None:
        """Search for a GradScaler where what is differentiated is a multiple of something."""
        last = {root.grad_fn.name() for root in roots if root.grad_fn is not None}
        if self._scalers or self._searches >= _SEARCHES or "MulBackward0" not in last:
            return
        self._searches += 1
        kinds: list[type] = [torch.amp.GradScaler]
        for kind in kinds:
            kinds += kind.__subclasses__()
        self._scalers = [weakref.ref(thing) for thing in living(lambda kind: kind in kinds)]

    def _loss_scale(self) -> float:
        """Return what a living GradScaler multiplies losses by, 1 without one."""
        for ref in self._scalers:
            if (scaler := ref()) is not None and scaler.is_enabled():
                return float(scaler.get_scale())
        return 1.0

    def _summed(self, tensor: torch.Tensor, ranks: int) -> None:
        for run in self.runs:
            if run.looking:
                run.summed(tensor, ranks)

    # --- steps -----------------------------------------------------------------------------

    def _of(self, optimizer: Optimizer) -> Run | None:
        for run in self.runs:
            if run.optimizer is optimizer:
                return run
        return None

    @eagerly
    def _step_begins(self, optimizer: Optimizer, arguments: Any, keywords: Any) -> None:
        self._follower.stop()
        run = self._of(optimizer)
        if run is None:
            return
        try:
            if run.step_begins():
                scale = self._loss_scale()
                self._unhook()  # a step that raised left its one behind
                if called_by_a_graph():  # a compiled step would be compiled anew for each hook
                    self._looks(run, scale)
                    return
                # Other hooks may change gradients yet, so that the last of them looks.
                self._last_hook = optimizer.register_step_pre_hook(
                    lambda *_: self._looks(run, scale)
                )
        except Exception as error:
            _tell([run], error)

    def _looks(self, run: Run, scale: float) -> None:
        try:
            run.looks(scale)
        except Exception as error:
            _tell([run], error)

    def _unhook(self) -> None:
        if self._last_hook is not None:
            self._last_hook.remove()
            self._last_hook = None

    @eagerly
    def _step_ends(self, optimizer: Optimizer, arguments: Any, keywords: Any) -> None:
        run = self._of(optimizer)
        if run is not None:
            try:
                if run.step_ends():
                    self._unhook()
                if run.looking and self._followed < _FOLLOWED and self._follows(self.runs):
                    self._followed += 1
            except Exception as error:
                _tell([run], error)

    def _follows(self, runs: Sequence[Run]) -> bool:
        """Follow from now on what is made of weights; say so where that can't be."""
        if self._follower.start():
            return True
        if self._follower.hindrance is not None:
            for run in runs:
                run.unfollowed = True
                run.trouble(
                    "terms of the loss that have no graph and dropouts by functions are not looked "
                    f"for: {self._follower.hindrance}"
                )
        return False


def _tell(runs: Sequence[Run], error: Exception) -> None:
    for run in runs:
        run.trouble(f"a look failed: {type(error).__name__}: {error}")
