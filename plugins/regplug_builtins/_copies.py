"""What copies and pickles of a module hold while a plugin has something of its own in it.

A hook, or a rate that moves, is the session's. ``copy.deepcopy`` (which ``AveragedModel`` calls),
``torch.save`` and a worker process that is spawned would take it along, and what it refers to.
"""

import weakref
from collections.abc import Callable
from typing import Any

from torch import nn

from regplug.errors import UnsupportedError

__all__ = ["Edit", "in_copies", "not_scripted"]

Edit = Callable[[dict[str, Any]], None]
"""Changes a module's attributes, in a dictionary that is a copy, to what a copy is to hold."""

_STATE, _SCRIPT = "__getstate__", "__prepare_scriptable__"


class _State:
    """Stands as ``__getstate__`` in a module's dictionary, where ``pickle`` and ``copy`` ask first.

    It is of the instance, so that the class, and other modules of it, stay as they are.
    """

    def __init__(self, module: nn.Module | None = None) -> None:
        self.module: Callable[[], nn.Module | None] = weakref.ref(module) if module else _nothing
        self.edits: list[Edit] = []

    def __call__(self) -> Any:
        module = self.module()
        if module is None:
            raise UnsupportedError(
                "this module's class copied its attributes while a regplug session was attached, "
                "and its state can't be told any more: copy it after session.detach()"
            )
        state = _own_state(module)
        attributes = state[0] if isinstance(state, tuple) else state
        if not isinstance(attributes, dict):
            return state  # of the class's own making
        attributes = dict(attributes)
        if attributes.get(_STATE) is self:
            del attributes[_STATE]
        for edit in self.edits:
            edit(attributes)
        return (attributes, *state[1:]) if isinstance(state, tuple) else attributes

    # For classes that copy or pickle their dictionary by themselves, as parametrized modules do.

    def __deepcopy__(self, memo: dict[int, Any]) -> "_State":
        return _State(memo.get(id(self.module())))

    def __reduce__(self) -> Any:
        return _State, ()


def _nothing() -> None:
    """Return None, as a reference does to what is gone."""


def _own_state(module: Any) -> Any:
    """Return the state of ``module`` as its class gives it."""
    of_class = getattr(type(module), _STATE, None)
    if of_class is not None:
        return of_class(module)
    return module.__dict__  # Python 3.10 has no object.__getstate__


def in_copies(module: nn.Module, edit: Edit) -> Callable[[], None]:
    """Have copies and pickles of ``module`` made from its attributes as ``edit`` changes them.

    Args:
        module: the module; its children are their own.
        edit: is called with a copy of its ``__dict__`` each time.

    Returns:
        What undoes it.

    >>> import copy
    >>> layer = nn.Dropout(0.5)
    >>> undo = in_copies(layer, lambda attributes: attributes.update(p=0.1))
    >>> copy.deepcopy(layer), layer
    (Dropout(p=0.1, inplace=False), Dropout(p=0.5, inplace=False))
    >>> undo()
    >>> copy.deepcopy(layer)
    Dropout(p=0.5, inplace=False)
    """
    found = vars(module).get(_STATE)
    state = found if isinstance(found, _State) and found.module() is module else _State(module)
    vars(module)[_STATE] = state
    edits = state.edits
    edits.append(edit)

    def undo() -> None:
        if edit in edits:
            edits.remove(edit)
        if not edits and vars(module).get(_STATE) is state:
            del vars(module)[_STATE]

    return undo


def not_scripted(module: nn.Module, why: str) -> Callable[[], None]:
    """Have ``torch.jit.script`` say that it can't take ``module``, and what to do instead.

    Args:
        module: the module; whatever contains it can't be scripted either.
        why: says what is in it.

    Returns:
        What undoes it.
    """

    def refuse() -> nn.Module:
        raise UnsupportedError(
            f"{why}, which torch.jit.script can't take: script a copy, as "
            "torch.jit.script(copy.deepcopy(model)), or after session.detach()"
        )

    # torch asks each module for it first. In an instance it is a plain function.
    if _SCRIPT in vars(module) or hasattr(type(module), _SCRIPT):
        return lambda: None
    vars(module)[_SCRIPT] = refuse
    forget = in_copies(module, lambda attributes: attributes.pop(_SCRIPT, None))

    def undo() -> None:
        forget()
        if vars(module).get(_SCRIPT) is refuse:
            del vars(module)[_SCRIPT]

    return undo
