"""Optimizers that keep weights of their own, behind whose back none may be changed.

Schedule-free ones train other weights than those that are evaluated, averaging and anchored ones
compute each update from weights that they keep: a decay there pulls the wrong ones, a constraint is
lost at the next step. The known ones are known by name; whether another keeps a copy of the weights
is seen in its state at the first step.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer

from regplug.backend.marks import is_hook
from regplug.backend.shards import local
from regplug.backend.step_events import is_torchs
from regplug.errors import UnsupportedError
from regplug.plugin import Plugin

__all__ = ["Copies", "moves_weights", "refuse", "suspected"]


@dataclass(frozen=True)
class _Kind:
    """Optimizers of which a name has one of ``fragments`` in it or is one of ``names``."""

    why: str
    way: str
    fragments: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    spares_decay: bool = False

    def holds(self, name: str) -> bool:
        return name in self.names or any(fragment in name for fragment in self.fragments)


_WAY = (
    "use a penalty with delivery='step' or 'loss', which is right here, its own weight_decay, or "
    "another optimizer"
)

# Found by training ½‖w + 1‖² with each of pytorch_optimizer's, schedulefree's, dadaptation's and
# prodigyopt's, and by whether a displacement of the weights outlasts its steps.
_KINDS = (
    _Kind(
        "whose line search and curvature estimates that would break",
        "use a penalty with delivery='step' or 'loss', or another optimizer",
        fragments=("lbfgs",),
    ),
    _Kind(
        "which trains other weights than those that are evaluated",
        _WAY,
        fragments=("schedulefree", "sfadamw"),
        names=("splus",),
    ),
    _Kind(
        "which finds its step size from the weights, so that lr is not what scales and a change "
        "misleads it",
        _WAY,
        fragments=("dadapt", "prodigy"),
        names=("dog", "ldog", "adamg", "mechanic", "trac"),
    ),
    _Kind(
        "which computes each update from weights that it keeps itself",
        _WAY,
        fragments=("madgrad", "cocob"),
        names=("a2grad", "a2graduni", "a2gradinc", "a2gradexp", "accsgd", "ftrl", "srmm"),
    ),
    _Kind(
        "which mixes slow weights of its own into them, so that neither zeros nor bounds last",
        "use weight_decay or a penalty with delivery='step' or 'loss', or attach to the optimizer "
        "inside, which it is right for between two mixings",
        fragments=("lookahead", "ranger"),
        spares_decay=True,
    ),
)


def moves_weights(plugin: Plugin) -> bool:
    """Whether a plugin changes weights around the update."""
    return plugin.changes_weights and (_acts(plugin, "before_step") or _acts(plugin, "after_step"))


def _acts(plugin: Plugin, hook: str) -> bool:
    return is_hook(getattr(plugin, hook, None))


def refuse(plugin: Plugin, optimizers: Iterable[object]) -> None:
    """Refuse a plugin that moves weights under an optimizer that is known to keep its own.

    Args:
        plugin: the plugin.
        optimizers: those that update the weights, and those that wrap them.

    Raises:
        UnsupportedError: so it is; it names both, and the way out.
    """
    if not moves_weights(plugin):
        return
    for optimizer in optimizers:
        for kind in _kinds(optimizer):
            if not (kind.spares_decay and _acts(plugin, "before_step")):
                raise UnsupportedError(
                    f"{plugin.name} changes weights behind the back of "
                    f"{type(optimizer).__name__}, {kind.why}: {kind.way}"
                )


def _kinds(optimizer: object) -> list[_Kind]:
    names = [base.__name__.lower().replace("_", "") for base in type(optimizer).__mro__]
    return [kind for kind in _KINDS if any(map(kind.holds, names))]


class Copies:
    """Looks once, at the first step, whether an optimizer that nobody knows keeps weights itself.

    Args:
        optimizers: those that update the weights.
        plugins: those that move weights.
        states: what they keep of each weight, where an engine's optimizer has other keys.
    """

    def __init__(
        self,
        optimizers: Sequence[object],
        plugins: Sequence[Plugin],
        states: Mapping[Any, Any] | None = None,
    ) -> None:
        self._optimizers, self._states = optimizers, states
        self._names = ", ".join(plugin.name for plugin in plugins)
        self._early = ", ".join(p.name for p in plugins if _acts(p, "before_step"))
        self._begun: tuple[torch.Tensor, torch.Tensor] | None = None
        self._sample: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def closure_begins(self, parameters: Iterable[torch.Tensor]) -> None:
        """Remember a weight as it is before a closure is evaluated."""
        self._begun = None
        if self._early and (w := _a_good_one(parameters)) is not None:
            self._begun = w, _plain(w)

    def before_decay(self) -> None:
        """Look whether the step has moved weights before it evaluated its closure.

        Raises:
            UnsupportedError: it has, and will put them back: what is changed now would be undone.
        """
        begun, self._begun = self._begun, None
        if begun is not None and not torch.equal(_plain(begun[0]), begun[1]):
            raise UnsupportedError(
                f"{self._early}: {type(self._optimizers[-1]).__name__} moves the weights before it "
                "evaluates its closure, and puts them back later with what is changed meanwhile: "
                "use a penalty with delivery='step', its own weight_decay, or attach to the "
                "optimizer that it holds for the update"
            )

    def before_update(self, parameters: Iterable[torch.Tensor]) -> None:
        """Remember a weight and its gradient as they are right before the update."""
        self._sample = None
        w = _a_good_one(p for p in parameters if p.grad is not None)
        if w is not None and w.grad is not None:
            self._sample = w, _plain(w), _plain(w.grad)

    def after_update(self) -> None:
        """Look whether a tensor of the optimizer's state is the weight.

        Raises:
            UnsupportedError: one is.
        """
        if self._sample is None:
            return
        w, before, gradient = self._sample
        after = _plain(w)
        for optimizer in self._optimizers:
            if _kinds(optimizer):
                continue  # what is attached to it was judged then
            for key, value in _state(self._states or getattr(optimizer, "state", None), w).items():
                if not isinstance(value, torch.Tensor) or local(value).shape != local(w).shape:
                    continue
                if str(key).startswith(("prev", "last", "old")):
                    continue  # for a difference to the weights now
                kept = _plain(value)
                if any(_is_copy(kept, weight, gradient) for weight in (before, after)):
                    raise UnsupportedError(
                        f"{self._names}: {type(optimizer).__name__} keeps weights of its own, "
                        f"state[{key!r}], so that what is changed behind its back is lost or "
                        f"wrong: {_WAY}"
                    )


def suspected(
    optimizers: Sequence[Optimizer],
    plugins: Iterable[Plugin],
    states: Mapping[Any, Any] | None = None,
) -> Copies | None:
    """Return what looks at them, or None where no plugin moves weights, or all are torch's own."""
    movers = [plugin for plugin in plugins if moves_weights(plugin)]
    known = all(map(is_torchs, optimizers))
    return None if known or not movers else Copies(optimizers, movers, states)


def _a_good_one(parameters: Iterable[torch.Tensor]) -> torch.Tensor | None:
    """Return a parameter that is cheap to look at, and has elements enough to be known by."""
    best: torch.Tensor | None = None
    for p in parameters:
        plain = p.grad is None or p.grad.layout == torch.strided
        if not plain or not p.is_floating_point() or local(p).numel() < 2 or _capturing(p):
            continue
        if best is None or _rank(p) < _rank(best):
            best = p
    return best


def _rank(p: torch.Tensor) -> tuple[bool, int]:
    size = local(p).numel()
    return size < 16, size if size >= 16 else -size


def _capturing(p: torch.Tensor) -> bool:
    return p.is_cuda and torch.cuda.is_current_stream_capturing()


def _plain(t: torch.Tensor) -> torch.Tensor:
    return local(t).detach().to("cpu", torch.float64, copy=True).flatten()


def _state(states: object, w: torch.Tensor) -> Mapping[Any, Any]:
    state = states.get(w) if isinstance(states, Mapping) else None
    return state if isinstance(state, Mapping) else {}


def _is_copy(kept: torch.Tensor, weight: torch.Tensor, gradient: torch.Tensor) -> bool:
    """Whether ``kept`` is near the weight, and nearer than to any multiple of the gradient."""
    size = weight.norm()
    if kept.numel() != weight.numel() or size == 0 or bool((weight == weight[0]).all()):
        return False
    distance = (kept - weight).norm() / size
    if not distance < 0.25:
        return False
    square = gradient.square().sum()
    multiple = gradient * (kept @ gradient / square) if square > 0 else torch.zeros_like(kept)
    return bool(distance < 0.1 * (kept - multiple).norm() / kept.norm())
