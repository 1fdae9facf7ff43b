"""Attaching plugins to whatever a program trains, while it runs and without a word from it.

Two of torch's global hooks are enough. The forward of an outermost module tells of a model: the
optimizers of its parameters that live by then get their sessions before it runs, so that dropout
rates hold from this first training forward on. A first ``step`` tells of an optimizer that none of
them knew. The forward hook is taken off as soon as every living optimizer has its session, and put
back when a new parameter is registered (the next fold's model), so the program runs at full speed.
"""

import shlex
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from torch.nn.modules import module as nn_module
from torch.optim import Optimizer
from torch.optim import optimizer as optim_module

from regplug.backend import private, stack, wrapped
from regplug.command.run import search
from regplug.command.run.entries import Entry
from regplug.command.run.naming import class_names, names_of_optimizer
from regplug.command.run.orders import Order, checked, fitting
from regplug.errors import RegplugError, SelectionError, UnsupportedError
from regplug.session import Session, attach

__all__ = ["Order", "Stop", "Watch", "checked"]

# So many forwards of outermost modules may pass before the forward hook gives up.
_FORWARDS = 16
# So many of the modules that were called last are remembered.
_REMEMBERED = 16
# So often may new parameters bring it back in vain: a program may register some at every step.
_RETURNS = 64


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
        self._known: WeakSet[Optimizer] = WeakSet()
        self._refused: WeakSet[Optimizer] = WeakSet()
        self._called: list[weakref.ref[nn.Module]] = []
        self._inside: set[int] = set()
        self._forward: Any = None
        self._forwards_left, self._returns = _FORWARDS, _RETURNS
        self._undo: list[Callable[[], Any]] = []
        self._title = ""

    def __enter__(self) -> "Watch":
        self._undo = [
            optim_module.register_optimizer_step_pre_hook(self._on_step).remove,
            nn_module.register_module_parameter_registration_hook(self._on_parameter).remove,
        ]
        # torch.compile warns of any global hook; this one is off again before it could matter.
        warnings.filterwarnings("ignore", "Using `torch.compile.module.` when there are global")
        self._register_compile()
        self._arm()
        return self

    def _register_compile(self) -> None:
        # A model compiled in place, or inside a compiled function, calls no hook before its graph
        # is traced. torch tells of that too, though by no documented name.
        undo = private.on_compile_start(self._on_compile)
        if undo is not None:  # else its optimizer gets its session at the first step
            self._undo.append(undo)

    def __exit__(self, *error: object) -> None:
        self._disarm()
        while self._undo:
            self._undo.pop()()

    def _arm(self) -> None:
        self._forwards_left = _FORWARDS if not self._known else 4
        self._inside.clear()
        if self._forward is None:
            self._forward = nn_module.register_module_forward_pre_hook(self._on_forward)

    def _disarm(self) -> None:
        if self._forward is not None:
            self._forward.remove()
            self._forward = None

    # --- torch's hooks ---------------------------------------------------------------------

    def _on_parameter(self, module: nn.Module, name: str, parameter: Any) -> None:
        if self._forward is None and self._returns > 0:
            self._returns -= 1
            self._arm()

    def _on_forward(self, module: nn.Module, arguments: Any) -> None:
        # Inside a graph that is being traced nothing can be looked for, and it is not needed:
        # the outermost module was called from outside of it.
        if torch.compiler.is_compiling() or id(module) in self._inside:
            return
        if not (module.training or torch.is_grad_enabled()):
            return
        ids = {id(p) for p in module.parameters()}
        if not ids:
            return
        self._inside.update(id(child) for child in module.modules() if child is not module)
        self._remember(module)
        found = self._unknown()
        served = [o for o in found if search.holds_any(module, o)]
        self._try_to_attach(sorted(served, key=_order_in(module)))
        self._forwards_left = _FORWARDS if served else self._forwards_left - 1
        if (served and len(served) == len(found)) or self._forwards_left <= 0:
            self._disarm()

    def _on_compile(self, *_: Any) -> None:
        if self._forward is not None and (found := self._unknown()):
            self._try_to_attach(found)
            self._disarm()

    def _unknown(self) -> list[Optimizer]:
        return [o for o in search.optimizers() if o not in self._known | self._refused]

    def _try_to_attach(self, optimizers: Sequence[Optimizer]) -> None:
        for optimizer in optimizers:
            try:
                self._attach(optimizer)
            except Exception:
                # Perhaps it never steps, and then it is no error: its first step decides.
                self._refused.add(optimizer)

    def _on_step(self, optimizer: Optimizer, arguments: Any, keywords: Any) -> None:
        if self.failure is not None:
            raise Stop(self.failure)
        if optimizer in self._known:
            return
        try:
            if self._works_for_a_known_one(optimizer) or search.passes_on(optimizer):
                return  # that one has its session, or the other way round: that one gets it
            self._attach(optimizer)
        except RegplugError as error:
            self.failure = f"{self._title}: {error}{self._way_out(optimizer)}"
            raise Stop(self.failure) from None

    def _works_for_a_known_one(self, optimizer: Optimizer) -> bool:
        """Whether the step of one that has its session calls this one's, of the same weights."""
        ids = wrapped.ids(optimizer)
        sharing = [other for other in self._known if ids & wrapped.ids(other)]
        running = list(stack.stepping([*sharing, optimizer])) if sharing else []
        if sharing and not any(held is optimizer for held in running):
            self._title = type(optimizer).__name__
            raise UnsupportedError(
                f"its step hooks were called, and no frame shows {type(optimizer).step!r} at work, "
                "by which regplug knows whether one optimizer works for another, as "
                f"{type(sharing[0]).__name__} has the same weights: attach to the one that is to "
                "have the plugins, regplug.attach(model, optimizer, plugins)"
            )
        return any(held is not optimizer for held in running)

    # --- sessions --------------------------------------------------------------------------

    def _remember(self, module: nn.Module) -> None:
        self._called = [ref for ref in self._called if ref() not in (None, module)]
        self._called.insert(0, weakref.ref(module))
        del self._called[_REMEMBERED:]

    def _attach(self, optimizer: Optimizer) -> None:
        model = search.model_of(optimizer, self._called_now())
        names = [*search.names_of(model), *class_names(model)]
        self._title = f"{names[0]} with {type(optimizer).__name__}"
        mine = [o for o in self.orders if o.fits([*names, *names_of_optimizer(optimizer)])]
        self.unmatched.difference_update(mine)
        if not mine:
            self._known.add(optimizer)
            self._refused.discard(optimizer)
            self.alone.append(self._title)
            return
        for entry in self.entries:
            entry.settle()
        try:
            session = self._attach_to(model, optimizer, mine, names[0])
        except SelectionError as error:
            mine = self._narrowed(mine, model, optimizer, error)
            if not mine:
                self._known.add(optimizer)
                self._refused.discard(optimizer)
                return
            session = self._attach_to(model, optimizer, mine, names[0])
        self._used.update(mine)
        self._known.add(optimizer)
        self._refused.discard(optimizer)
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
        for other in self._others(optimizer) if missed else ():
            found, _ = fitting(missed, search.model_of(other, self._called_now()), other)
            missed = [order for order in missed if order not in found]
        if missed or not unfit:
            raise error
        self.passed += [f"{order.spec} selects nothing of {self._title}" for order in unfit]
        return fit

    def _others(self, optimizer: Optimizer) -> list[Optimizer]:
        """Return the other living optimizers, those of the most weights first, as on any rank."""
        others = [o for o in search.optimizers() if o is not optimizer]
        return sorted(others, key=lambda o: -sum(p.numel() for p in wrapped.parameters(o)))

    def _called_now(self) -> list[nn.Module]:
        return [module for ref in self._called if (module := ref()) is not None]

    def _way_out(self, optimizer: Optimizer) -> str:
        """Say how a plugin is kept to the models that it is meant for, if there are several."""
        names: dict[str, None] = {}
        for other in self._others(optimizer):
            found = search.names_of(search.model_of(other, self._called_now()))
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


def _order_in(module: nn.Module) -> Callable[[Optimizer], tuple[int, str]]:
    """Return a key that sorts optimizers alike on all ranks: by their place in ``module``."""
    places = {id(p): place for place, p in enumerate(module.parameters())}

    def key(optimizer: Optimizer) -> tuple[int, str]:
        first = min(places.get(id(p), len(places)) for p in wrapped.parameters(optimizer))
        return first, type(optimizer).__name__

    return key
