"""L2-SP, λ·Σ(w − w₀)²: fine-tuned weights stay near those of the starting point."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from regplug import Penalty, SessionView, full, hookimpl, like, part, widened
from regplug.errors import StateError
from regplug.schedules import ScheduleLike

__all__ = ["L2SP"]


class L2SP(Penalty):
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
        self._anchors: dict[str, torch.Tensor] = {}
        self._waiting: dict[str, torch.Tensor] = {}  # loaded, of lazy weights with no shape yet
        self._names: dict[int, str] = {}
        self._bound: object = None

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
        self._anchors, self._waiting, self._bound = {}, {}, None
        self._bind(session)
        super().on_attach(session)

    def _bind(self, session: SessionView) -> None:
        """Follow the optimizer's parameters when they are replaced, as FSDP2 does.

        It may shard what is spread over a mesh already, by tensor parallelism.
        """
        coverage = session.coverage(self._selection)
        if coverage is self._bound:
            return
        self._bound = coverage
        self._names = {id(entry.parameter): entry.name for entry in coverage}
        for entry in coverage:
            w = entry.parameter.detach()
            known = self._anchors.get(entry.name)
            if known is None:
                self._anchors[entry.name] = self._first(entry.name, w)
            elif known.shape == w.shape and _placed(known) != _placed(w):
                self._anchors[entry.name] = like(part(full(known).to(w), w), w)

    def _first(self, name: str, w: torch.Tensor) -> torch.Tensor:
        """Return the anchor of a weight that has none: where it is, or where a saved run began."""
        saved = self._waiting.pop(name, None)
        if saved is None:
            return w.clone()
        if saved.shape != w.shape:
            raise StateError(
                f"{self.name}: the saved anchor of {name} has shape {tuple(saved.shape)}, and the "
                f"lazy parameter has become {tuple(w.shape)}"
            )
        return saved.to(w, copy=True)

    def companions(self, w: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return the anchor of a parameter."""
        name = self._names.get(id(w))
        return () if name is None else (self._anchors[name],)

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

    @hookimpl
    def on_state(self, session: SessionView) -> Mapping[str, Any]:
        """Return the anchors, sharded as the weights are; the session makes them whole."""
        self._bind(session)
        anchors = {**self._waiting, **self._anchors}
        return {"anchors": {n: _kept(anchor) for n, anchor in anchors.items()}}

    @hookimpl
    def on_load_state(self, session: SessionView, state: Mapping[str, Any]) -> None:
        """Take the anchors of the run that goes on."""
        self._bind(session)
        saved = state.get("anchors", {})
        if not isinstance(saved, Mapping) or not all(
            isinstance(anchor, torch.Tensor) for anchor in saved.values()
        ):
            raise StateError(f"{self.name}: the saved anchors are no tensors by parameter name")
        shapes = {name: tuple(anchor.shape) for name, anchor in self._anchors.items()}
        lazy = {entry.name for entry in session.coverage(self._selection).lazy}
        known = {n: tuple(anchor.shape) for n, anchor in saved.items() if n not in lazy}
        if known != shapes:
            raise StateError(
                f"{self.name}: the saved anchors are of {', '.join(map(str, saved)) or 'nothing'}, "
                f"and this session has {', '.join(shapes)}: select the same parameters, of the "
                "same shapes"
            )
        loaded = {}
        for name, anchor in self._anchors.items():
            own = saved[name].to(device=anchor.device, dtype=anchor.dtype)
            if _placed(own)[0] is None or _placed(own) != _placed(anchor):
                own = like(part(full(own), anchor), anchor)
            loaded[name] = own
        self._anchors = loaded
        self._waiting = {name: anchor for name, anchor in saved.items() if name in lazy}

    @hookimpl
    def on_detach(self, session: SessionView) -> None:
        """Let go of the anchors."""
        self._anchors, self._waiting, self._names, self._bound = {}, {}, {}, None


def _placed(tensor: torch.Tensor) -> tuple[Any, Any]:
    """Return where the parts of a ``DTensor`` are."""
    return getattr(tensor, "device_mesh", None), getattr(tensor, "placements", None)


def _kept(anchor: torch.Tensor) -> torch.Tensor:
    """Return what is saved of an anchor: not the slice that an engine gives each rank."""
    return anchor if _placed(anchor)[0] is not None else full(anchor).cpu()
