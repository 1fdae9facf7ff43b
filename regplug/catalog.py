"""Names and specs turned into plugin instances, by way of the installed entry points.

>>> parse("l1(linear(0, 1e-4, steps=1000), where='encoder.*')")
('l1', (linear(0, 0.0001, steps=1000),), {'where': 'encoder.*'})
>>> parse("l1=1e-5")
('l1', (1e-05,), {})
"""

import ast
import inspect
import re
import warnings
from typing import Any

from regplug import schedules
from regplug.distributions import Offer, offers
from regplug.errors import (
    PluginError,
    PluginNotFoundError,
    RegplugError,
    SelectionError,
    SpecError,
)
from regplug.parameters import nearest
from regplug.plugin import Plugin

__all__ = ["find", "load", "load_class", "names", "parse"]

_LONGEST = 10_000
_SHORT = re.compile(r"\s*([A-Za-z_]\w*)\s*=(?!=)(.*\S.*)", re.DOTALL)
_SCHEDULES = {
    name: getattr(schedules, name)
    for name in ("constant", "linear", "cosine", "exponential", "piecewise", "warmup")
}


def load(spec: str) -> Plugin:
    """Return a plugin made from ``spec``.

    Only the named plugin is imported; a broken one elsewhere disturbs nobody.

    Raises:
        SpecError: the spec is no call with literal arguments, or its arguments are wrong.
        PluginNotFoundError: no installed distribution offers a plugin of that name.
        PluginError: it does not load, is no plugin class, or two distributions offer it.

    >>> load("l1(1e-5)").strength
    1e-05
    """
    name, args, kwargs = parse(spec)
    cls = load_class(name)
    try:
        inspect.signature(cls).bind(*args, **kwargs)
    except TypeError as error:
        raise SpecError(
            f"{spec!r}: {error}; the plugin is {name}{inspect.signature(cls)}"
        ) from error
    try:
        return cls(*args, **kwargs)
    except (SpecError, SelectionError) as error:
        error.args = (f"{spec!r}: {error}",)
        raise
    except RegplugError:
        raise
    except (TypeError, ValueError) as error:
        raise SpecError(f"{spec!r}: {error}") from error
    except Exception as error:
        raise PluginError(
            f"{name} ({find(name).source}) failed on {spec!r}: {type(error).__name__}: {error}"
        ) from error


def names() -> list[str]:
    """Return the names of all installed plugins; none of them is imported."""
    return sorted({offer.name for offer in offers()})


def find(name: str, *, anew: bool = False) -> Offer:
    """Return the one entry point called ``name``, without loading it.

    Args:
        name: of the plugin.
        anew: whether what is installed is read again before; it is in any case if there is none.

    Raises:
        PluginNotFoundError: there is none; the message shows the nearest names.
        PluginError: two distributions offer it, or one offers it twice.
    """
    found = [offer for offer in offers(anew=anew) if offer.name == name]
    if not found and not anew:
        return find(name, anew=True)
    if not found:
        close = ", ".join(nearest(name, names())) or "nothing at all"
        raise PluginNotFoundError(
            f"no installed plugin is called {name!r}; the nearest are {close} "
            "(`regplug plugins` lists all)"
        )
    if len(found) > 1:
        who = " and ".join(f"{offer.source} ({offer.value})" for offer in found)
        raise PluginError(f"the plugin name {name!r} is taken twice, by {who}: uninstall one")
    return found[0]


def load_class(name: str) -> type[Plugin]:
    """Return the plugin class called ``name``.

    Raises:
        PluginNotFoundError: there is none; the message shows the nearest names.
        PluginError: it does not load, is no subclass of :class:`regplug.Plugin`, or is taken twice.
    """
    offer = find(name)
    try:
        cls = offer.entry_point.load()
    except (Exception, SystemExit) as error:
        if find(name, anew=True).value != offer.value:  # installed anew, with its class elsewhere
            return load_class(name)
        raise PluginError(
            f"the plugin {name!r} of {offer.source} does not load from {offer.value}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, Plugin)):
        raise PluginError(
            f"the entry point {name!r} of {offer.source} is {cls!r}, which is no subclass of "
            "regplug.Plugin"
        )
    return cls


def parse(spec: str) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """Return name, positional and keyword arguments of ``spec``; nothing in it is evaluated.

    A spec is a Python call with literal arguments (numbers, strings, None, booleans, lists,
    tuples, dicts), in which calls of the schedules are literals too. ``name`` alone is a call
    without arguments, ``name=value`` one with a single argument.

    Raises:
        SpecError: it is anything else; the message quotes the part that is wrong.
    """
    if not isinstance(spec, str):
        raise SpecError(f"a spec must be a string, got {spec!r}")
    if len(spec) > _LONGEST:
        raise SpecError(f"a spec has at most {_LONGEST} characters, this one has {len(spec)}")
    short = _SHORT.fullmatch(spec)
    text = f"{short[1]}({short[2]})" if short else spec.strip()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            node = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        why = error.msg if isinstance(error, SyntaxError) else str(error)
        raise SpecError(f"{_quoted(spec)} is no spec such as 'name(1e-5)': {why}") from error
    if isinstance(node, ast.Name):
        return node.id, (), {}
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise SpecError(
            f"{_quoted(spec)} is no spec such as 'name(1e-5)': not a call of a plain name"
        )
    try:
        args, kwargs = _arguments(node, spec)
    except RecursionError as error:
        raise SpecError(f"{_quoted(spec)} is nested too deep") from error
    except SpecError:
        raise
    except ValueError as error:  # an integer of thousands of digits, which Python won't print
        raise SpecError(f"{_quoted(spec)}: {error}") from error
    return node.func.id, args, kwargs


def _arguments(call: ast.Call, spec: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    kwargs: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            raise SpecError(f"{_quoted(spec)}: ** is not allowed in a spec")
        if keyword.arg in kwargs:
            raise SpecError(f"{_quoted(spec)}: {keyword.arg} is given twice")
        kwargs[keyword.arg] = _literal(keyword.value, spec)
    return tuple(_literal(arg, spec) for arg in call.args), kwargs


def _literal(node: ast.expr, spec: str) -> Any:
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None):
            return node.value
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=ast.Constant(value=int() | float())):
            value = node.operand.value  # type: ignore[attr-defined]
            if not isinstance(value, bool):
                return -value if isinstance(node.op, ast.USub) else value
        case ast.List():
            return [_literal(item, spec) for item in node.elts]
        case ast.Tuple():
            return tuple(_literal(item, spec) for item in node.elts)
        case ast.Dict() if None not in node.keys:
            try:
                return {
                    _literal(key, spec): _literal(value, spec)
                    for key, value in zip(node.keys, node.values, strict=True)
                    if key is not None
                }
            except TypeError as error:
                raise SpecError(f"{_quoted(spec)}: {error}") from error
        case ast.Call(func=ast.Name(id=name)) if name in _SCHEDULES:
            args, kwargs = _arguments(node, spec)
            schedule = _SCHEDULES[name]
            wanted = inspect.signature(schedule)
            try:
                wanted.bind(*args, **kwargs)
            except TypeError as error:
                form = f"{name}({', '.join(wanted.parameters)})"
                raise SpecError(f"{_quoted(spec)}: {error}; the schedule is {form}") from error
            try:
                return schedule(*args, **kwargs)
            except (SpecError, TypeError) as error:
                raise SpecError(f"{_quoted(spec)}: {name}: {error}") from error
        case ast.Call(func=ast.Name(id=name)):
            close = ", ".join(nearest(name, _SCHEDULES, most=2))
            raise SpecError(f"{_quoted(spec)}: {name} is no schedule; the nearest are {close}")
    raise SpecError(
        f"{_quoted(spec)}: {_quoted(ast.unparse(node))} is no literal (a number, string, list, "
        "dict or schedule call): nothing in a spec is evaluated"
    )


def _quoted(text: str, most: int = 120) -> str:
    return repr(text if len(text) <= most else text[: most - 1] + "…")
