"""Which sessions are attached now, and to what.

Nothing but an optimizer's hooks may hold a session, as where a notebook's cell is run again: the
name it had is the new session's. Here it can be found, and taken off.
"""

import warnings
from typing import Any
from weakref import WeakKeyDictionary, ref

from torch import nn

from regplug.backend import wrapped, wrappers
from regplug.plugin import Plugin
from regplug.selection.where import named_parameters
from regplug.view import SessionView

__all__ = ["after", "changes", "enter", "leave", "on", "warn_of_doubles"]


# By weak references on both sides: a session holds its optimizer.
_living: WeakKeyDictionary[object, tuple[ref[Any], ...]] = WeakKeyDictionary()
_changes = [0]


def on(thing: object) -> tuple[Any, ...]:
    """Return the sessions that are attached to an optimizer, or to a model, the oldest first.

    Args:
        thing: an optimizer or a module, bare or wrapped as it was given to ``attach``.

    Returns:
        Them, as a tuple that is empty where there is none.

    >>> import regplug, torch
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> _ = regplug.attach(model, optimizer, ["l1(0.1)"])    # and the session's name is lost
    >>> for old in regplug.sessions.on(optimizer): old.detach()
    >>> regplug.sessions.on(optimizer)
    ()
    """
    unwrapped: object = (
        wrappers.unwrap_model(thing) if isinstance(thing, nn.Module) else wrapped.unwrap(thing)
    )
    return tuple(session for r in _living.get(unwrapped, ()) if (session := r()) is not None)


def after(session: SessionView) -> tuple[Any, ...]:
    """Return the sessions on the same optimizer whose events of a step come after this one's."""
    attached = () if session.optimizer is None else on(session.optimizer)
    return attached[attached.index(session) + 1 :] if session in attached else ()


def changes() -> int:
    """Return a number that is another one as soon as any session is attached or detached."""
    return _changes[0]


def enter(session: SessionView) -> None:
    """Note that ``session`` is attached."""
    _changes[0] += 1
    for thing in _things(session):
        _living[thing] = (*_living.get(thing, ()), ref(session))


def leave(session: SessionView) -> None:
    """Note that ``session`` is detached. May be called twice."""
    _changes[0] += 1
    for thing in _things(session):
        left = tuple(r for r in _living.get(thing, ()) if r() not in (None, session))
        if left:
            _living[thing] = left
        else:
            _living.pop(thing, None)


def _things(session: SessionView) -> list[object]:
    return [session.model] if session.optimizer is None else [session.model, session.optimizer]


def warn_of_doubles(session: Any) -> None:
    """Warn of plugins that a living session of the same name attached to the same weights already.

    Two sessions that act beside each other on purpose have two names. Called within attach.
    """
    found = {id(other): other for thing in _things(session) for other in on(thing)}
    for other in found.values():
        if other is session or other.name != session.name:
            continue
        doubles = [
            mine.name
            for mine in session.plugins
            if any(_doubles(mine, session, its, other) for its in other.plugins)
        ]
        if doubles:
            what = "optimizer" if _share_optimizer(session, other) else "model"
            warnings.warn(
                f"session {other.name!r}, which is attached to this "
                f"{type(getattr(session, what)).__name__} already ({other.steps} steps), has "
                f"{', '.join(doubles)} too, for the same weights or modules: both act, twice in "
                "all. Where a cell is run again, put "
                f"`for old in regplug.sessions.on({what}): old.detach()` before attach(…); where "
                "both are meant, name this one: attach(…, name='second')",
                stacklevel=4,  # the line that says attach(…)
            )


def _share_optimizer(session: Any, other: Any) -> bool:
    return session.optimizer is not None and other.optimizer is session.optimizer


def _doubles(mine: Plugin, session: Any, its: Plugin, other: Any) -> bool:
    """Whether two plugins do the same to the same things."""
    # A cell that is run again may define the class anew: then the name is what they share.
    if type(mine) is not type(its) and mine.name != its.name:
        return False
    ours, theirs = _covered(mine, session), _covered(its, other)
    same_optimizer = _share_optimizer(session, other)
    if ours is None or theirs is None:
        return same_optimizer and mine.name == its.name
    # A session's weights are its optimizer's; modules are everyone's.
    return any(same_optimizer or not ours[thing] for thing in ours.keys() & theirs.keys())


def _covered(plugin: Plugin, session: Any) -> dict[object, bool] | None:
    """Return what ``plugin`` acts on, each with whether it is a weight; None if it doesn't say."""
    names = plugin.agreement(session).get("covers")
    if not isinstance(names, list):
        return None
    weights = {name: n.parameter for n in named_parameters(session.model) for name in n.names}
    # What is no weight is a module, or a rate of one.
    return {
        id(weights[name]) if name in weights else (id(session.model), name): name in weights
        for name in names
    }
