"""What a class or function of a spec is called with."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["misfit", "signature"]


def signature(cls: type) -> inspect.Signature:
    """Return what ``cls`` is called with, without the types, which would fill a page.

    >>> class Lasso:
    ...     def __init__(self, strength: float, *, where: str = "weights") -> None: ...
    >>> print(signature(Lasso))
    (strength, *, where='weights')
    """
    try:
        own = inspect.signature(cls)
    except (TypeError, ValueError):  # a class that hides what it takes
        own = inspect.signature(lambda *args, **kwargs: None)
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in own.parameters.values()]
    return own.replace(parameters=plain, return_annotation=inspect.Signature.empty)


def misfit(wanted: inspect.Signature, args: Iterable[Any], kwargs: Mapping[str, Any]) -> str | None:
    """Return why ``wanted`` can't be called like this, or None. A wrong keyword is told first."""
    if not any(p.kind is p.VAR_KEYWORD for p in wanted.parameters.values()):
        for key in kwargs:
            if key not in wanted.parameters:
                return f"got an unexpected keyword argument {key!r}"
    try:
        wanted.bind(*args, **kwargs)
    except TypeError as error:
        return str(error)
    return None
