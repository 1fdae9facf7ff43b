"""What a session acts on: the parameters of the model that its optimizer updates, and how."""

import math
from collections.abc import Iterator
from itertools import repeat
from numbers import Real
from operator import attrgetter, is_
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.optim import Optimizer

from regplug.backend import shards, step_events, wrapped, wrappers
from regplug.backend.groups import Group
from regplug.errors import SpecError, UnsupportedError
from regplug.selection.coverage import Coverage, cover, shared
from regplug.selection.where import Selection
from regplug.session import composition
from regplug.session.silence import Silence
from regplug.view import SessionView

if TYPE_CHECKING:
    from regplug.backend.update_rules import UpdateRule
    from regplug.backend.zero import ZeroSteps

__all__ = ["Binding"]


class Binding:
    """The parameters and groups of one session, bound anew when the optimizer's are others.

    Args:
        model: the user's own module, unwrapped.
        optimizer: the torch optimizer, unwrapped, or None.
        silence: is given what to watch.
        zero: the steps of DeepSpeed's, where it is an engine's.

    Attributes:
        parts: the optimizers that a wrapper of several holds.
        plain: the optimizer, if it has groups of its own: what is asked at each step asks it.
        fresh: whether it was looked at since the last step in which nobody needed it.
        attached: whether every plugin is, so that they can be checked together.
        taking: what takes part in the step that is under way, where its gradients may be cleared
            in it.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        silence: Silence,
        zero: "ZeroSteps | None" = None,
    ) -> None:
        self._model, self._optimizer, self._silence = model, optimizer, silence
        self.parts = [] if optimizer is None else wrapped.parts(optimizer)
        self.plain = None if self.parts or zero is not None else optimizer
        self._zero = zero
        self.fresh = True
        self.attached = False
        self.taking: dict[int, torch.Tensor | None] | None = None
        self._by_hand: Group = {"params": list(model.parameters()), "lr": None}
        self._bound: list[list[torch.Tensor]] = []
        self.of_meshes: list[torch.Tensor] = []
        # By weak keys: a plugin may make a selection anew each time it asks.
        self._coverages: WeakKeyDictionary[Selection, Coverage] = WeakKeyDictionary()
        self._rule: UpdateRule | None = None

    @property
    def groups(self) -> list[Group]:
        """The parameter groups: those of whatever updates, or one for a loop without optimizer."""
        if self._zero is not None:
            return list(self._zero.groups)  # type: ignore[arg-type]
        if self.parts:
            return [group for part in self.parts for group in part.param_groups]
        return [self._by_hand] if self._optimizer is None else self._optimizer.param_groups

    def by_hand(self, lr: float | None) -> list[torch.Tensor]:
        """Begin an update without optimizer, and return the parameters that it may be of.

        Raises:
            SpecError: ``lr`` is no learning rate.
        """
        if self._optimizer is not None:
            raise UnsupportedError(
                "this session has an optimizer, whose step() fires the events by itself; "
                "session.step() is for loops without one: attach(model, plugins=…)"
            )
        if lr is not None and not _is_rate(lr):
            raise SpecError(f"lr must be a finite number that is not negative, got {lr!r}")
        self._by_hand = {"params": list(self._model.parameters()), "lr": lr}
        return list(self._by_hand["params"])

    def owned(self) -> list[torch.Tensor]:
        """Return all parameters of the groups."""
        return [p for group in self.groups for p in group["params"]]

    def bind(self, session: SessionView) -> None:
        """Forget the coverages if the optimizer's parameters are others than before."""
        self.fresh = True
        plain, bound = self.plain, self._bound
        groups = self.groups if plain is None else plain.param_groups
        if len(groups) == len(bound):
            for group, known in zip(groups, bound, strict=True):
                params = group["params"]
                if len(params) != len(known) or not all(map(is_, params, known)):
                    break
            else:
                return
        self._bound = [list(group["params"]) for group in groups]
        self.of_meshes = [p for known in self._bound for p in known if shards.is_dtensor(p)]
        self._coverages.clear()
        self._silence.watch(groups)
        self.check()
        if self.attached:
            composition.check(session, again=True)

    def check(self) -> None:
        """Refuse parameters that are not the model's, or that others update."""
        if self._optimizer is not None:
            self.gather_names()
            shared(self._model, self.groups)
            step_events.check_not_in_backward(self._optimizer)

    def gather_names(self) -> None:
        """Have the model name the sharded parameters, where FSDP2 has gathered them for a while."""
        named = {id(p) for p in self._model.parameters()}
        owned = (p for group in self.groups for p in group["params"])
        if any(shards.is_dtensor(p) and id(p) not in named for p in owned):
            wrappers.reshard(self._model)

    def coverage(self, selection: Selection) -> Coverage:
        """Return what ``selection`` covers of the optimizer's parameters, as they were bound."""
        found = self._coverages.get(selection)
        if found is None or (found.lazy and found.outdated):
            self.gather_names()
            found = cover(selection, self._model, self.groups)
            self._coverages[selection] = found
        return found

    def updates(
        self, selection: Selection
    ) -> Iterator[tuple[int, list[torch.Tensor], list[torch.Tensor]]]:
        """Return (group index, weights, gradients) of what takes part in this step."""
        taking = self.taking
        found: list[tuple[int, list[torch.Tensor], list[torch.Tensor]]] = []
        for index, parameters in self.coverage(selection).by_group.items():
            whole = list(map(_grad, parameters))
            none_is_left = not any(map(is_, whole, repeat(None)))
            if whole and none_is_left and all(map(_requires_grad, parameters)):
                found.append((index, list(parameters), whole))
                continue
            weights: list[torch.Tensor] = []
            gradients: list[torch.Tensor] = []
            for w in parameters:
                g = w.grad
                if g is None and taking is not None:
                    g = taking.get(id(w))
                if g is not None and w.requires_grad:
                    weights.append(w)
                    gradients.append(g)
            if weights:
                found.append((index, weights, gradients))
        return iter(found)

    def place_gradients(self) -> None:
        """Have gradients placed as their weights are, before anything is added to them."""
        shards.place_gradients(self.of_meshes)

    def remember(self) -> None:
        """Remember what takes part in the step that is under way."""
        self.taking = {id(w): w.grad for weights in self._bound for w in weights}

    def update_rule(self) -> "UpdateRule":
        """Return what the optimizer multiplies a gradient by."""
        if self._rule is None:
            from regplug.backend.update_rules import update_rule  # for proximal operators alone

            self._rule = update_rule(self._optimizer)
        return self._rule


_grad = attrgetter("grad")
_requires_grad = attrgetter("requires_grad")


def _is_rate(lr: object) -> bool:
    one = lr.numel() == 1 if isinstance(lr, torch.Tensor) else isinstance(lr, Real)
    return one and 0 <= lr < math.inf  # type: ignore[operator]
