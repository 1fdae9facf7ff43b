"""What a session saves and loads: checked, put back if it fails, and kept when it is detached."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch

from regplug.backend import shards
from regplug.backend.gradmode import without_grad
from regplug.backend.names import named_parameters
from regplug.errors import RegplugError, StateError
from regplug.plugin import Plugin
from regplug.session.calls import Calls
from regplug.view import SessionView

if TYPE_CHECKING:
    from regplug.session.snapshots import Ghost

__all__ = ["States", "checked", "parts", "weights"]


def checked(
    state: object, plugins: Sequence[Plugin]
) -> tuple[int, Mapping[str, Mapping[str, Any]]]:
    """Return the steps and the states by plugin name that ``session.state_dict()`` returned.

    Raises:
        StateError: it is no such state, or of other plugins than these.
    """
    steps = state.get("steps") if isinstance(state, Mapping) else None
    states = state.get("plugins") if isinstance(state, Mapping) else None
    whole = isinstance(steps, int) and not isinstance(steps, bool) and steps >= 0
    if not (whole and isinstance(states, Mapping)) or not all(
        isinstance(remembered, Mapping) for remembered in states.values()
    ):
        raise StateError("this is not what session.state_dict() returned")
    names = {plugin.name for plugin in plugins}
    if names != set(states):
        raise StateError(
            f"the saved state is of the plugins {sorted(states, key=str) or 'none'}, "
            f"this session has {sorted(names) or 'none'}"
        )
    assert isinstance(steps, int)
    return steps, states


def weights(session: SessionView) -> list[torch.Tensor]:
    """Return the parameters of a session: its optimizer's, then what the model has besides.

    FSDP2 leaves the root's gathered after an evaluation. The model then shows plain tensors.
    """
    owned = [p for group in session.groups for p in group["params"]]
    known = set(map(id, owned))
    named = [n.parameter for n in named_parameters(session.model)]
    return owned + [p for p in named if id(p) not in known]


def parts(state: Mapping[str, Any], plugins: Sequence[Plugin]) -> Iterator[tuple[Any, ...]]:
    """Yield the paths of those tensors in a saved state that may be what one rank alone keeps."""
    whole = {plugin.name: plugin.whole_state for plugin in plugins}
    for path in _tensors(state, ()):
        if path[0] != "plugins" or path[2] not in whole.get(path[1], ()):
            yield path


def _tensors(state: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    inside: Iterable[tuple[Any, Any]] = ()
    if isinstance(state, torch.Tensor):
        yield path
    elif isinstance(state, Mapping):
        inside = state.items()
    elif isinstance(state, list | tuple):
        inside = enumerate(state)
    for key, value in inside:
        yield from _tensors(value, (*path, key))


class States:
    """What the plugins of one session answer: its own, or as they were when they left it.

    Args:
        plugins: those of the session.
        calls: asks them.
        tell: is given each failure before it is raised.
    """

    def __init__(
        self, plugins: Sequence[Plugin], calls: Calls, tell: Callable[[Exception], None]
    ) -> None:
        self._plugins, self._calls, self._tell = tuple(plugins), calls, tell
        self._ghosts: dict[str, Ghost] = {}
        self._answering: tuple[tuple[Plugin, ...], Calls] | None = None

    def keep(self, plugin: Plugin) -> None:
        """Keep a plugin as it is now, before it is detached and may be attached elsewhere."""
        from regplug.session.snapshots import Ghost  # not before one leaves

        if plugin.name not in self._ghosts:
            self._ghosts[plugin.name] = Ghost(plugin)
            self._answering = None

    def answering(self) -> tuple[tuple[Plugin, ...], Calls]:
        """Return the plugins to ask, and what asks them.

        Raises:
            StateError: what one of them knew is lost.
        """
        if not self._ghosts:
            return self._plugins, self._calls
        if self._answering is None:
            kept = {name: ghost.plugin for name, ghost in self._ghosts.items()}
            plugins = tuple(kept.get(p.name, p) for p in self._plugins)
            self._answering = plugins, Calls(plugins, self._tell)
        for ghost in self._ghosts.values():
            ghost.check()
        return self._answering

    def saved(self, session: SessionView, steps: int, *, sharded: bool) -> dict[str, Any]:
        """Return what ``session.state_dict()`` does."""
        plugins, calls = self.answering()
        states = {p.name: dict(calls.mapping(p, "on_state", session)) for p in plugins}
        return {"steps": steps, "plugins": states if sharded else _whole(states)}

    def load(self, session: SessionView, state: object, advance: Callable[[int], None]) -> None:
        """Have the plugins go on from ``state``, or as before if any of them fails to.

        Args:
            session: whose plugins they are.
            state: what ``session.state_dict()`` returned once.
            advance: sets the session's step count.
        """
        from regplug.session.snapshots import Memory

        steps, states = checked(state, self._plugins)
        at = session.steps
        memories: list[tuple[Plugin, Memory]] = []
        try:
            advance(steps)
            for plugin in self._plugins:
                memories.append((plugin, Memory(plugin)))
                self._load(session, plugin, states[plugin.name])
        except BaseException:
            for _, memory in memories:
                memory.restore()
            advance(at)
            # Once more, for what a plugin has set elsewhere by what it read.
            for plugin, _ in memories:
                with suppress(RegplugError):  # the first error is the one to see
                    remembered = self._calls.mapping(plugin, "on_state", session)
                    self._load(session, plugin, remembered)
            raise

    def _load(self, session: SessionView, plugin: Plugin, state: Mapping[str, Any]) -> None:
        without_grad(self._calls.one, plugin, "on_load_state", session, state=state)


def _whole(state: Any) -> Any:
    """Return ``state`` with what is spread over ranks whole, on the CPU."""
    if isinstance(state, torch.Tensor):
        return shards.full(state).cpu() if shards.is_spread(state) else state
    if isinstance(state, dict):
        return {key: _whole(value) for key, value in state.items()}
    return type(state)(map(_whole, state)) if type(state) in (list, tuple) else state
