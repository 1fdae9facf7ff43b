"""The lasso at a given sparsity: its strength is whatever leaves that share of exact zeros."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from regplug import (
    Adaptive,
    Scheduled,
    Selective,
    SessionView,
    hookimpl,
    in_use,
    local,
    widened,
    zeros,
)
from regplug.errors import SpecError
from regplug.schedules import ScheduleLike
from regplug_builtins._kth import kth_smallest
from regplug_builtins.l1 import soft_threshold

__all__ = ["TargetSparsity"]


class TargetSparsity(Adaptive, Selective):
    r"""The proximal lasso, λ·Σ|w|, with the least λ that leaves the share of zeros asked for.

    After each step, w ← sign(w)·max(|w| − step·λ, 0) with the step that the optimizer effectively
    takes (as ``l1(λ, delivery="proximal")``), and λ = the k-th smallest |w|/step over all covered
    weights together, k = ⌈share·n⌉. So the share of zeros is never below what the schedule says,
    and above it only where weights are equal; it is the whole model's, under sharding too, and one
    layer may be emptier than another. Where weights no longer move, λ is the strength of the lasso
    problem that has this many zeros: gradients of zeros are at most λ.

    λ is measured at every step: two passes over the covered weights (four if one is in float64),
    one tensor after another, and on sharded weights a sum of 512 KiB over the ranks for each. The
    host waits for none of it. ``session.metrics()`` gives λ as ``strength``; it is saved with the
    session.

    n counts the weights that the step moves: elements that never had a gradient under Adam and its
    like, and parameters whose ``.grad`` is None, stay as they are.

    Args:
        sparsity: the share of zeros, within [0, 1], or a schedule of it over the step count.
        by: after how many steps it is reached, from 0 on a straight line: of a number or a
            schedule min((step + 1)/by, 1) is asked for. None at once.
        where: the parameters, by default ``"weights"``.
        name: the key of its state and metrics.

    Raises:
        SpecError: ``sparsity`` leaves [0, 1], or ``by`` is no number of steps.
        SelectionError: ``where`` is no selection, or covers nothing.
        UnsupportedError: the optimizer's effective step is not known, or it is LBFGS.

    References:
        Yu Wang, Jinshan Zeng, Zhimin Peng, Xiangyu Chang, Zongben Xu, "Linear Convergence of
        Adaptively Iterative Thresholding Algorithms for Compressed Sensing", 2015,
        https://arxiv.org/abs/1408.6890 (a threshold that is set by the number of nonzeros).
        Neal Parikh, Stephen Boyd, "Proximal Algorithms", 2014, section 6.5.2,
        https://web.stanford.edu/~boyd/papers/prox_algs.html.

    >>> import regplug
    >>> model = torch.nn.Linear(4, 1, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[4.0, -3.0, 2.0, 1.0]]))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> session = regplug.attach(model, optimizer, [TargetSparsity(0.5)])
    >>> model(torch.zeros(1, 4)).sum().backward(); optimizer.step()
    >>> (model.weight == 0).tolist(), round(session.metrics()["target_sparsity/strength"], 3)
    ([[False, False, True, True]], 20.0)
    """

    adapts = ("_strength",)
    reads_gradients = False
    order_matters = True  # the one that acts last has the last word on zeros

    sparsity = Scheduled(low=0.0, high=1.0)

    _strength: torch.Tensor | None = None

    def __init__(
        self,
        sparsity: ScheduleLike,
        *,
        by: int | None = None,
        where: object = "weights",
        name: str | None = None,
    ) -> None:
        if by is not None and (isinstance(by, bool) or not isinstance(by, int) or by < 1):
            raise SpecError(f"by must be a whole number of steps, at least 1, got {by!r}")
        self.sparsity, self.by = sparsity, by
        self.where = where  # type: ignore[assignment]
        self.name = name

    @hookimpl
    def on_attach(self, session: SessionView) -> None:
        """Check the selection, and that the optimizer's step is known."""
        super().on_attach(session)
        session.coverage(self._selection)
        session.update_rule()

    def _way(self, steps: int) -> float:
        """Return which part of the way to the share is gone after so many steps."""
        return 1.0 if self.by is None else min(steps / self.by, 1.0)

    @hookimpl
    def after_step(self, session: SessionView) -> None:
        """Measure the strength, and apply the proximal operator."""
        share = self.sparsity * self._way(session.steps + 1)
        if not share:
            return
        moved = [w for w, _ in _moved(self, session)]
        if not moved:
            return
        exact = torch.float64 if any(w.dtype == torch.float64 for w in moved) else torch.float32

        def sizes() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            for w, step in _steps(self, session):
                yield w, (widened(local(w)).abs().to(exact) / step).to(exact)

        self._strength = strength = kth_smallest(sizes, share)
        for w, step in _steps(self, session):
            part = local(w)
            threshold = strength.to(part.device, non_blocking=True) * step
            part.copy_(soft_threshold(widened(part), threshold))

    @hookimpl
    def on_metrics(self, session: SessionView) -> Mapping[str, Any]:
        """Return the share asked for, the strength that it took, and the share that there is."""
        used = in_use.in_use(session.coverage(self._selection))
        strength = 0.0 if self._strength is None else self._strength
        return {
            "sparsity": self.sparsity * self._way(session.steps),
            "strength": strength,
            "zeros": zeros(used, session.kernels),
        }

    def acts(self, session: SessionView) -> str:
        """Say that it is proximal."""
        return "proximal, after_step"


def _steps(plugin: TargetSparsity, session: SessionView) -> Iterator[tuple[torch.Tensor, Any]]:
    """Yield each weight that took part with its effective step, to be used before the next."""
    for w, step in _moved(plugin, session):
        yield w, step()


def _moved(
    plugin: TargetSparsity, session: SessionView
) -> Iterator[tuple[torch.Tensor, Callable[[], Any]]]:
    """Yield each weight that took part with what computes its step, which is a pass of its own."""
    rule, groups = session.update_rule(), session.groups
    for index, weights, gradients in session.updates(plugin._selection):
        group = groups[index]
        if not rule.elementwise:
            step = rule.step(group, {}, gradients[0])
            if isinstance(step, torch.Tensor) or step > 0:
                yield from ((w, partial(_same, step)) for w in weights)
            continue
        names, states = rule.tensors(group), session.stateful.state
        for w, gradient in zip(weights, gradients, strict=True):
            if state := states.get(w):
                used = local(gradient) if rule.uses_gradient else w
                yield w, partial(_own_step, rule, group, state, names, used)


def _same(step: Any) -> Any:
    return step


def _own_step(
    rule: Any,
    group: Mapping[str, Any],
    state: Mapping[str, Any],
    names: Sequence[str],
    gradient: torch.Tensor,
) -> Any:
    parts = {name: widened(local(state[name])) for name in names}
    return rule.step(group, {**state, **parts}, gradient)
