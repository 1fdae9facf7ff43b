"""Attaching plugins to whatever a program trains, while it runs and without a word from it.

An optimizer gets its session before the first training forward of what it trains, so that dropout
rates hold from then on; one that was not known by then gets it at its first step.
"""

import shlex
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from regplug.command.run.entries import Entry
from regplug.command.run.orders import Order, checked, fitting
from regplug.errors import RegplugError, SelectionError
from regplug.finding import search
from regplug.finding.finder import Finder
from regplug.finding.naming import class_names, names_of_optimizer
from regplug.session import Session, attach

__all__ = ["Order", "Stop", "Watch", "checked"]


class Stop(BaseException):
    """Ends the program: a plugin can't be attached. The message says why."""


class Watch:
    """Attaches plugins to every optimizer that steps while it is on. A context manager.

    Args:
        orders: the plugins, and the models that each is for.
        look: called with a session that is about to be forgotten, and at the end.
        attached: called with each new session.

    Attributes:
        entries: one for each session so far.
        alone: the models that no plugin was for.
        passed: what an order without a pattern was not attached to, for it selects nothing there.
        failure: what ended the program, if a plugin could not be attached.
    """

    def __init__(
        self,
        orders: Sequence[Order],
        *,
        look: Callable[[Session], Any] = lambda session: None,
        attached: Callable[[Session], None] = lambda session: None,
    ) -> None:
        self.orders = list(orders)
        self.entries: list[Entry] = []
        self.alone: list[str] = []
        self.passed: list[str] = []
        self._used: set[Order] = set()
        self.failure: str | None = None
        self.unmatched = {order for order in orders if order.scope is not None}
        self._look, self._attached = look, attached
        self._title = ""
        self._finder = Finder(self._try_to_attach, self._on_step)

    def __enter__(self) -> "Watch":
        self._finder.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._finder.__exit__(*error)

    def _try_to_attach(self, optimizers: Sequence[Optimizer]) -> None:
        for optimizer in optimizers:
            try:
                self._attach(optimizer)
            except Exception:
                # Perhaps it never steps, and then it is no error: its first step decides.
                self._finder.refused.add(optimizer)

    def _on_step(self, optimizer: Optimizer) -> None:
        if self.failure is not None:
            raise Stop(self.failure)
        if optimizer in self._finder.known:
            return
        self._title = type(optimizer).__name__
        try:
            if self._finder.works_for_a_known_one(optimizer) or search.passes_on(optimizer):
                return  # that one has its session, or the other way round: that one gets it
            self._attach(optimizer)
        except RegplugError as error:
            self.failure = f"{self._title}: {error}{self._way_out(optimizer)}"
            raise Stop(self.failure) from None

    # --- sessions --------------------------------------------------------------------------

    def _attach(self, optimizer: Optimizer) -> None:
        model = search.model_of(optimizer, self._finder.called_now())
        names = [*search.names_of(model), *class_names(model)]
        self._title = f"{names[0]} with {type(optimizer).__name__}"
        mine = [o for o in self.orders if o.fits([*names, *names_of_optimizer(optimizer)])]
        self.unmatched.difference_update(mine)
        if not mine:
            self._finder.known.add(optimizer)
            self._finder.refused.discard(optimizer)
            self.alone.append(self._title)
            return
        for entry in self.entries:
            entry.settle()
        try:
            session = self._attach_to(model, optimizer, mine, names[0])
        except SelectionError as error:
            mine = self._narrowed(mine, model, optimizer, error)
            if not mine:
                self._finder.known.add(optimizer)
                self._finder.refused.discard(optimizer)
                return
            session = self._attach_to(model, optimizer, mine, names[0])
        self._used.update(mine)
        self._finder.known.add(optimizer)
        self._finder.refused.discard(optimizer)
        self.entries.append(Entry(session, self._look))
        self._attached(session)

    def _attach_to(
        self, model: nn.Module, optimizer: Optimizer, orders: Sequence[Order], name: str
    ) -> Session:
        specs = [order.spec for order in orders]
        return attach(model, optimizer, specs, name=self._free_name(name))

    def _narrowed(
        self,
        orders: Sequence[Order],
        model: nn.Module,
        optimizer: Optimizer,
        error: SelectionError,
    ) -> list[Order]:
        """Return the orders that select something here, if the others select something elsewhere.

        Nobody asked for a scalar of its own (a temperature, say) to be regularized; but a
        selection that matches nothing anywhere is a mistake.
        """
        fit, unfit = fitting(orders, model, optimizer)
        if any(order.scope is not None for order in unfit):
            raise error
        missed = [order for order in unfit if order not in self._used]
        for other in self._finder.others(optimizer) if missed else ():
            found, _ = fitting(missed, search.model_of(other, self._finder.called_now()), other)
            missed = [order for order in missed if order not in found]
        if missed or not unfit:
            raise error
        self.passed += [f"{order.spec} selects nothing of {self._title}" for order in unfit]
        return fit

    def _way_out(self, optimizer: Optimizer) -> str:
        """Say how a plugin is kept to the models that it is meant for, if there are several."""
        names: dict[str, None] = {}
        for other in self._finder.others(optimizer):
            found = search.names_of(search.model_of(other, self._finder.called_now()))
            names[(found or names_of_optimizer(other))[0]] = None
        spec = next((order.spec for order in self.orders if order.scope is None), None)
        if spec is None or not names:
            return ""
        example = shlex.quote(f"{spec} @ {next(iter(names))}")
        return f" (if it is for another model of this script, say for which, as in -p {example})"

    def _free_name(self, name: str) -> str:
        taken = {entry.name for entry in self.entries}
        number = 1
        free = name
        while free in taken:
            number += 1
            free = f"{name}-{number}"
        return free
