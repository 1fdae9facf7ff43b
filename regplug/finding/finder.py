"""Finding out what a program trains, while it runs and without a word from it.

Two of torch's global hooks are enough. The forward of an outermost module tells of a model: the
optimizers of its parameters that live by then are found before it runs. A first ``step`` tells of
an optimizer that none of them knew. The forward hook is taken off as soon as every living optimizer
is known, and put back when a new parameter is registered (the next fold's model), so the program
runs at full speed.
"""

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
from regplug.backend.eager import eagerly
from regplug.backend.quiet import quiet_about_hooks
from regplug.errors import UnsupportedError
from regplug.finding import search

__all__ = ["Finder"]

# So many forwards of outermost modules may pass before the forward hook gives up.
_FORWARDS = 16
# So many of the modules that were called last are remembered.
_REMEMBERED = 16
# So often may new parameters bring it back in vain: a program may register some at every step.
_RETURNS = 64


class Finder:
    """Tells of every optimizer of the program while it is on. A context manager.

    Args:
        found: called with optimizers that are not known yet, before a forward of what they train.
        stepping: called with every optimizer that is about to step.

    Attributes:
        known: the optimizers that need not be told of again; for whoever is told to fill.
        refused: those that are told of again at their steps alone.
    """

    def __init__(
        self,
        found: Callable[[Sequence[Optimizer]], None],
        stepping: Callable[[Optimizer], None],
    ) -> None:
        self.known: WeakSet[Optimizer] = WeakSet()
        self.refused: WeakSet[Optimizer] = WeakSet()
        self._found, self._stepping = found, stepping
        self._called: list[weakref.ref[nn.Module]] = []
        self._inside: set[int] = set()
        self._forward: Any = None
        self._forwards_left, self._returns = _FORWARDS, _RETURNS
        self._undo: list[Callable[[], Any]] = []

    def __enter__(self) -> "Finder":
        self._undo = [
            optim_module.register_optimizer_step_pre_hook(self._on_step).remove,
            nn_module.register_module_parameter_registration_hook(self._on_parameter).remove,
        ]
        self._undo.append(quiet_about_hooks())
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
        self._forwards_left = _FORWARDS if not self.known else 4
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
        self._found(sorted(served, key=_order_in(module)))
        self._forwards_left = _FORWARDS if served else self._forwards_left - 1
        if (served and len(served) == len(found)) or self._forwards_left <= 0:
            self._disarm()

    def _on_compile(self, *_: Any) -> None:
        if self._forward is not None and (found := self._unknown()):
            self._found(found)
            self._disarm()

    def _unknown(self) -> list[Optimizer]:
        return [o for o in search.optimizers() if o not in self.known | self.refused]

    @eagerly
    def _on_step(self, optimizer: Optimizer, arguments: Any, keywords: Any) -> None:
        self._stepping(optimizer)

    def works_for_a_known_one(self, optimizer: Optimizer) -> bool:
        """Whether the step of a known one calls this one's, of the same weights.

        Raises:
            UnsupportedError: it shares weights with a known one, and frames don't tell.
        """
        ids = wrapped.ids(optimizer)
        sharing = [other for other in self.known if ids & wrapped.ids(other)]
        running = list(stack.stepping([*sharing, optimizer])) if sharing else []
        if sharing and not any(held is optimizer for held in running):
            raise UnsupportedError(
                f"its step hooks were called, and no frame shows {type(optimizer).step!r} at work, "
                "by which regplug knows whether one optimizer works for another, as "
                f"{type(sharing[0]).__name__} has the same weights: attach to the one that is to "
                "have the plugins, regplug.attach(model, optimizer, plugins)"
            )
        return any(held is not optimizer for held in running)

    def others(self, optimizer: Optimizer) -> list[Optimizer]:
        """Return the other living optimizers, those of the most weights first, as on any rank."""
        others = [o for o in search.optimizers() if o is not optimizer]
        return sorted(others, key=lambda o: -sum(p.numel() for p in wrapped.parameters(o)))

    def called_now(self) -> list[nn.Module]:
        return [module for ref in self._called if (module := ref()) is not None]

    def _remember(self, module: nn.Module) -> None:
        self._called = [ref for ref in self._called if ref() not in (None, module)]
        self._called.insert(0, weakref.ref(module))
        del self._called[_REMEMBERED:]


def _order_in(module: nn.Module) -> Callable[[Optimizer], tuple[int, str]]:
    """Return a key that sorts optimizers alike on all ranks: by their place in ``module``."""
    places = {id(p): place for place, p in enumerate(module.parameters())}

    def key(optimizer: Optimizer) -> tuple[int, str]:
        first = min(places.get(id(p), len(places)) for p in wrapped.parameters(optimizer))
        return first, type(optimizer).__name__

    return key
