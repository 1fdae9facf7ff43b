"""The weights that a run started from, for plugins that pull to them: kept, followed, saved."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from regplug import Selective, SessionView, full, hookimpl, like, part
from regplug.errors import StateError

__all__ = ["Anchored"]


class Anchored(Selective):
    """Remembers the covered weights as they are when it is attached: w₀.

    Those of lazy parameters are of their first forward. They cost one copy of the covered weights,
    sharded as they are, and are part of the session's state: a resumed run keeps its starting
    point, on another number of processes, too.
    """

    whole_state = ("anchors",)

    def _forget(self) -> None:
        self._anchors: dict[str, torch.Tensor] = {}
        self._waiting: dict[str, torch.Tensor] = {}  # loaded, of lazy weights with no shape yet
        self._names: dict[int, str] = {}
        self._bound: object = None

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
        self._forget()


def _placed(tensor: torch.Tensor) -> tuple[Any, Any]:
    """Return where the parts of a ``DTensor`` are."""
    return getattr(tensor, "device_mesh", None), getattr(tensor, "placements", None)


def _kept(anchor: torch.Tensor) -> torch.Tensor:
    """Return what is saved of an anchor: not the slice that an engine gives each rank."""
    return anchor if _placed(anchor)[0] is not None else full(anchor).cpu()
