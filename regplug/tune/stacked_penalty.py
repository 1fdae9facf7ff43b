"""One penalty of many models at once: the plugin's own formulas, with a strength for each model."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch.func import grad, vmap
from torch.optim import Optimizer

from regplug import Penalty, Plugin, Scheduled
from regplug.backend.groups import sign
from regplug.backend.precision import widened
from regplug.backend.update_rules import update_rule
from regplug.plugin import set_steps
from regplug.schedules import constant

__all__ = ["StackedPenalty", "why_not_stacked"]

_HOOKS = ("on_attach", "on_loss", "on_gradients", "before_step", "after_step")

Strengths: TypeAlias = dict[str, torch.Tensor]
Way: TypeAlias = Callable[[str, Strengths, torch.Tensor, Any], torch.Tensor]


def why_not_stacked(plugin: Plugin) -> str:
    """Return why a plugin can't act on many models at once, or "" if it can.

    A penalty that leaves the events as they are is its formulas and nothing else.
    """
    if not isinstance(plugin, Penalty):
        return f"{plugin.name} is no penalty"
    if plugin.mappings:
        return f"{plugin.name} has strengths by pattern"
    overridden = [hook for hook in _HOOKS if _hook(type(plugin), hook) is not _hook(Penalty, hook)]
    if plugin.orientation is not None and not plugin.separable:
        return f"{plugin.name} asks for rows or columns, which depend on the layer"
    return f"{plugin.name} has its own {', '.join(overridden)}" if overridden else ""


def _hook(cls: type, name: str) -> object:
    return inspect.getattr_static(cls, name, None)


class StackedPenalty:
    """The penalties of ``strengths`` models, for parameters of shape ``(folds, strengths, …)``.

    The formulas are called with tensors of strengths, for all models at once if the penalty is
    separable, or under ``vmap``. A formula that does not take that, which is found by comparing, is
    called once for each model.

    Args:
        penalties: one for each strength; only their strengths differ.
        weights: the stacked parameters, each with its group of the optimizer.
        optimizer: the optimizer of the stacked parameters.
    """

    def __init__(
        self,
        penalties: Sequence[Plugin],
        weights: Sequence[tuple[torch.Tensor, dict[str, Any]]],
        optimizer: Optimizer,
    ) -> None:
        self._penalties = [p for p in penalties if isinstance(p, Penalty)]
        self._first = self._penalties[0]
        self._weights = weights
        self._optimizer = optimizer
        self._names = _scheduled(type(self._first), self._first)
        self.delivery = self._first.delivery
        self._rule = update_rule(optimizer) if self.delivery == "proximal" else None
        self._steady = all(isinstance(s, constant) for p in self._penalties for s in _schedules(p))
        self._now: tuple[Strengths, torch.Tensor | None] | None = None
        self._ways: dict[tuple[str, torch.Size, bool], Way] = {}

    def add_gradients(self, step: int) -> None:
        """Add each model's strength times the gradient of the value, unless it is proximal."""
        if self._rule is not None:
            return
        strengths, active = self._strengths(step)
        for w, group in self._weights:
            if w.grad is None:
                if self.delivery == "step":
                    continue
                w.grad = torch.zeros_like(w)  # as a term of the loss it has a gradient
            wide = widened(w.detach())
            found = self._call("gradient", strengths, wide, None)
            found = found * _spread(strengths["strength"], wide) * sign(group)
            if active is not None:
                found = found.masked_fill(~_spread(active, wide), 0)
            w.grad += found

    def apply_proximal(self, step: int) -> None:
        """Replace the weights by their proximal points, with the step each optimizer takes."""
        if self._rule is None:
            return
        strengths, active = self._strengths(step)
        for w, group in self._weights:
            if w.grad is None:
                continue
            wide = widened(w.detach())
            effective_step = self._rule.step(group, self._optimizer.state[w], w.grad)
            found = self._call("proximal", strengths, wide, effective_step)
            w.copy_(found if active is None else torch.where(_spread(active, wide), found, wide))

    def _strengths(self, step: int) -> tuple[Strengths, torch.Tensor | None]:
        """Return each scheduled attribute, shape ``(strengths,)``, and who is active if not all."""
        if self._now is not None and self._steady:
            return self._now
        like = self._weights[0][0]
        set_steps(self._penalties, step)
        dtype = torch.promote_types(like.dtype, torch.float32)
        tensors = {
            name: torch.tensor(
                [getattr(penalty, name) for penalty in self._penalties],
                dtype=dtype,
                device=like.device,
            )
            for name in self._names
        }
        active = [penalty.active for penalty in self._penalties]
        self._now = tensors, None if all(active) else torch.tensor(active, device=like.device)
        return self._now

    def _call(self, formula: str, strengths: Strengths, w: torch.Tensor, step: Any) -> torch.Tensor:
        key = formula, w.shape, isinstance(step, torch.Tensor)
        way = self._ways.get(key)
        if way is None:
            way = self._ways[key] = self._choose(formula, strengths, w, step)
        return way(formula, strengths, w, step)

    def _choose(self, formula: str, strengths: Strengths, w: torch.Tensor, step: Any) -> Way:
        """Return the fastest way that agrees with the formula called for each model."""
        # Not the weights themselves: models that start alike would hide a mix-up between them.
        generator = torch.Generator("cpu").manual_seed(0)
        noise = torch.rand(w.shape, generator=generator, device="cpu").to(w) * 2 - 1
        wanted = self._one_by_one(formula, strengths, noise, step)
        for way in (self._broadcast, self._vmapped) if self._first.separable else (self._vmapped,):
            try:
                found = way(formula, strengths, noise, step)
            except Exception:
                continue
            if found.shape == wanted.shape and torch.allclose(found, wanted, 1e-4, 1e-7):
                return way
        return self._one_by_one

    def _broadcast(
        self, formula: str, strengths: Strengths, w: torch.Tensor, step: Any
    ) -> torch.Tensor:
        shadow = _shadow(self._first, {name: _spread(t, w) for name, t in strengths.items()})
        found: torch.Tensor = (
            shadow.gradient(w) if formula == "gradient" else shadow.proximal(w, step)
        )
        return found

    def _vmapped(
        self, formula: str, strengths: Strengths, w: torch.Tensor, step: Any
    ) -> torch.Tensor:
        def one(w: torch.Tensor, step: Any, strengths: Strengths) -> torch.Tensor:
            shadow = _shadow(self._first, strengths)
            if formula == "proximal":
                result: torch.Tensor = shadow.proximal(w, step)
            elif type(self._first).gradient is Penalty.gradient:
                result = grad(shadow.value)(w)
            else:
                result = shadow.gradient(w)
            return result

        stepped = 0 if isinstance(step, torch.Tensor) and step.ndim else None
        inner = vmap(one, in_dims=(0, stepped, 0))
        found: torch.Tensor = vmap(inner, in_dims=(0, stepped, None))(w, step, strengths)
        return found

    def _one_by_one(
        self, formula: str, strengths: Strengths, w: torch.Tensor, step: Any
    ) -> torch.Tensor:
        found = torch.empty_like(w)
        each = isinstance(step, torch.Tensor) and step.ndim
        for fold in range(len(w)):
            for k, penalty in enumerate(self._penalties):
                if formula == "gradient":
                    found[fold, k] = penalty.gradient(w[fold, k])
                else:
                    found[fold, k] = penalty.proximal(w[fold, k], step[fold, k] if each else step)
        return found


def _scheduled(cls: type[Penalty], penalty: Penalty) -> list[str]:
    """Return the names of what is a number or a schedule: ``strength``, and a plugin's own."""
    return list(
        dict.fromkeys(
            name
            for base in cls.__mro__
            for name, attribute in vars(base).items()
            if isinstance(attribute, Scheduled) and name in vars(penalty)
        )
    )


def _schedules(penalty: Penalty) -> list[Any]:
    cls = type(penalty)
    return [getattr(cls, name).schedule(penalty) for name in _scheduled(cls, penalty)]


def _shadow(penalty: Penalty, strengths: Strengths) -> Any:
    """Return a copy whose scheduled attributes are the tensors given, instead of numbers now."""
    cls = type(penalty)
    plain: Any = type(cls.__name__, (cls,), dict.fromkeys(strengths))
    shadow = object.__new__(plain)
    shadow.__dict__.update(penalty.__dict__)
    shadow.__dict__.update(strengths)
    return shadow


def _spread(values: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Return ``(strengths,)`` as ``(1, strengths, 1, …)``, to go with a stacked parameter."""
    return values.view(1, -1, *[1] * (w.ndim - 2))
