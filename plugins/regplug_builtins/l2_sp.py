"""L2-SP, λ·Σ(w − w₀)²: fine-tuned weights stay near those of the starting point."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from regplug import Penalty, SessionView, hookimpl, widened
from regplug.schedules import ScheduleLike
from regplug_builtins._anchored import Anchored

__all__ = ["L2SP"]


class L2SP(Anchored, Penalty):
    r"""The penalty towards the starting point: λ·Σ(w − w₀)², with no ½.

    w₀ are the weights at attach, the pre-trained ones in transfer learning, and of lazy parameters
    those of their first forward. λ is half of the
    authors' α; their β, a plain ridge penalty on layers that are new, is a plugin of its own:
    ``["l2_sp(0.05, where='backbone.*')", "l2(0.005, where='head.*')"]``. Its gradient is
    2λ·(w − w₀), its proximal operator (w + 2·step·λ·w₀)/(1 + 2·step·λ).

    The anchors w₀ cost one copy of the covered weights, sharded as they are, and are part of the
    session's state: a resumed run keeps its starting point, on another number of processes, too. In
    that state they are whole, by a collective for sharded weights, unless it is saved by
    ``torch.distributed.checkpoint`` (``regplug.integrations.checkpoint``).

    Args:
        strength: λ, a finite number ≥ 0 or a schedule of the step count.
        where: the parameters, by default ``"weights"``.
        delivery: ``"auto"``, ``"loss"``, ``"step"``, ``"proximal"``, see :class:`regplug.Penalty`.
        name: the key of its state and metrics.

    Raises:
        SpecError: ``strength`` is negative or not finite, or ``delivery`` is none of these.
        SelectionError: ``where`` is no selection.
        StateError: a saved state has anchors of other parameters or shapes.

    References:
        Xuhong Li, Yves Grandvalet, Franck Davoine, "Explicit Inductive Bias for Transfer Learning
        with Convolutional Networks", 2018, https://arxiv.org/abs/1802.01483.

    >>> import regplug
    >>> model = torch.nn.Linear(2, 1)
    >>> with regplug.attach(model, plugins=[L2SP(0.5)]) as session:
    ...     at_start = session.metrics()["l2_sp/value"]
    ...     _ = model.weight.data.add_(3.0)
    ...     at_start, round(session.metrics()["l2_sp/value"], 4)        # 0.5·2·3²
    (0.0, 9.0)
    """

    reads_gradients = False
    separable = True
    composition = "pull"

    def __init__(
        self,
        strength: ScheduleLike,
        *,
        where: object = "weights",
        delivery: str = "auto",
        name: str | None = None,
    ) -> None:
        super().__init__(strength, where=where, delivery=delivery, name=name)  # type: ignore[arg-type]
        self._forget()

    # --- the formula; without an anchor w₀ is 0 -------------------------------------------

    def value(self, w: torch.Tensor, anchor: torch.Tensor | None = None) -> torch.Tensor:
        """Return Σ(w − w₀)²."""
        return (w if anchor is None else w - anchor).square().sum()

    def gradient(self, w: torch.Tensor, anchor: torch.Tensor | None = None) -> torch.Tensor:
        """Return 2(w − w₀)."""
        return 2 * (w if anchor is None else w - anchor)

    def proximal(
        self, w: torch.Tensor, step: float | torch.Tensor, anchor: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return w₀ + (w − w₀)/(1 + 2·step·λ)."""
        shrink = 1 + 2 * self.strength * step
        return w / shrink if anchor is None else anchor + (w - anchor) / shrink

    def add_gradients(
        self,
        gradients: list[torch.Tensor],
        weights: list[torch.Tensor],
        factor: float,
        anchors: Sequence[torch.Tensor] = (),
    ) -> None:
        """Add ``2·factor·(w − w₀)`` to each gradient."""
        # The difference first: near the anchor, half gradients would round both away.
        moved = torch._foreach_sub(weights, list(anchors)) if anchors else weights
        torch._foreach_add_(gradients, list(moved), alpha=2 * factor)

    def proximal_(
        self,
        weights: list[torch.Tensor],
        step: float | torch.Tensor,
        anchors: Sequence[torch.Tensor] = (),
    ) -> None:
        """Replace each weight by its proximal point, in place."""
        for i, w in enumerate(weights):
            wide = widened(w)
            w.copy_(self.proximal(wide, step, anchors[i] if anchors else None))

    # --- the anchors ----------------------------------------------------------------------

    @hookimpl
    def on_attach(self, session: SessionView) -> None:
        """Remember the weights."""
        self._forget()
        self._bind(session)
        super().on_attach(session)

    @hookimpl
    def on_loss(self, session: SessionView) -> Any:
        """Return the penalty as a term of the loss, unless it is delivered elsewhere."""
        self._bind(session)
        return super().on_loss(session)

    @hookimpl
    def on_gradients(self, session: SessionView) -> None:
        """Add the gradient to ``.grad``, if that is the delivery."""
        self._bind(session)
        super().on_gradients(session)

    @hookimpl
    def on_metrics(self, session: SessionView) -> Mapping[str, Any]:
        """Return value (strength included), strength and share of exact zeros."""
        self._bind(session)
        return super().on_metrics(session)
