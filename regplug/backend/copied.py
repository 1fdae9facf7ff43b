"""Copies and pickles of objects that leave something out."""

from typing import Any

__all__ = ["reduced_without"]


def reduced_without(name: str, reduced: Any) -> Any:
    """Return what ``object.__reduce_ex__`` gave, without an attribute of that name."""
    make, arguments, *more = reduced
    state = more[0] if more else None
    if isinstance(state, tuple) and isinstance(state[0], dict):  # with what is in slots
        more[0] = ({key: value for key, value in state[0].items() if key != name}, *state[1:])
    elif isinstance(state, dict):
        more[0] = {key: value for key, value in state.items() if key != name}
    return (make, arguments, *more)
