"""Standing in for a function of torch's while somebody listens, where torch has no hook."""

import functools
from collections.abc import Callable
from typing import Any

__all__ = ["stand_in"]


def stand_in(owner: Any, name: str, made_of: Callable[[Any], Callable[..., Any]]) -> Any:
    """Put a function in the place of ``owner.name``, and return what puts the original back.

    Not for sessions, which patch nothing: for tools that look at a run for a while. It is called
    still by whoever keeps it, so that it has to look itself whether anybody listens.

    Args:
        owner: a module or a class.
        name: of the function in it.
        made_of: makes the stand-in of the original.
    """
    inherited = name not in vars(owner)
    original = getattr(owner, name)
    listened = functools.wraps(original)(made_of(original))

    def undo() -> None:
        # Somebody may have put a function of their own around this one since.
        if vars(owner).get(name) is not listened:
            return
        if inherited:
            delattr(owner, name)
        else:
            setattr(owner, name, original)

    setattr(owner, name, listened)
    return undo
