"""Specs: Python calls with literal arguments, parsed and never evaluated.

The grammar is here alone: how a spec is read, and how one with a placeholder is filled in.
"""

import ast
import inspect
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from regplug import schedules, strengths
from regplug.backend.words import nearest
from regplug.discovery.arguments import misfit
from regplug.errors import SpecError

__all__ = ["LONGEST", "Template", "parse", "quoted"]


LONGEST = 10_000


_SHORT = re.compile(r"\s*([A-Za-z_]\w*)\s*=(?!=)(.*\S.*)", re.DOTALL)


_SCHEDULES = {
    name: getattr(schedules, name)
    for name in ("constant", "linear", "cosine", "exponential", "piecewise", "warmup")
} | {"per_layer": strengths.per_layer}


def parse(spec: str) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """Return name, positional and keyword arguments of ``spec``; nothing in it is evaluated.

    A spec is a Python call with literal arguments (numbers, strings, None, booleans, lists,
    tuples, dicts), in which calls of the schedules are literals too. ``name`` alone is a call
    without arguments, ``name=value`` one with a single argument.

    Raises:
        SpecError: it is anything else; the message quotes the part that is wrong.
    """
    call = _call_of(spec)
    assert isinstance(call.func, ast.Name)
    try:
        args, kwargs = _arguments(call, spec)
    except RecursionError as error:
        raise _too_deep(spec) from error
    except SpecError:
        raise
    except ValueError as error:  # an integer of thousands of digits, which Python won't print
        raise SpecError(f"{quoted(spec)}: {error}") from error
    return call.func.id, args, kwargs


@dataclass(frozen=True)
class Template:
    """A spec that holds the placeholder ``_`` once, where a number goes.

    A bare name stands for ``name(_)``. It is kept as a call, spelled out.

    >>> template = Template.of("elastic_net(_, 0.5)")
    >>> template.filled(1e-3), template.with_argument("where", "all").filled(-1.0)
    ('elastic_net(0.001, 0.5)', "elastic_net(-1.0, 0.5, where='all')")
    >>> Template.of("l1").spec
    'l1(_)'
    >>> Template.of("plugin(_)", "./mine.py:Mine").filled(1e-3)
    './mine.py:Mine(0.001)'

    Attributes:
        spec: the call.
        head: what stands in the place of the call's name, where that is no name.
    """

    spec: str
    head: str | None = None

    @classmethod
    def of(cls, text: str, head: str | None = None) -> "Template":
        """Return the template that ``text`` is.

        Args:
            text: a spec with the placeholder, or a name alone.
            head: what is to stand in the place of its name, as a file with a class.

        Raises:
            SpecError: it is no spec, or holds the placeholder not at all or twice.
        """
        call = _call_of(f"{text}(_)" if text.strip().isidentifier() else text)
        found = sum(isinstance(node, ast.Name) and node.id == "_" for node in ast.walk(call))
        if found != 1 or (isinstance(call.func, ast.Name) and call.func.id == "_"):
            many = f"{found} placeholders" if found > 1 else "no placeholder"
            raise SpecError(
                f"{quoted(text)} holds {many}: write _ once, where the strength goes, as in "
                "'plugin(_)'"
            )
        try:
            return cls(ast.unparse(call), head)
        except RecursionError as error:
            raise _too_deep(text) from error
        except ValueError as error:  # an integer of thousands of digits, which Python won't print
            raise SpecError(f"{quoted(text)}: {error}") from error

    @classmethod
    def by_pattern(cls, text: str, head: str | None = None) -> tuple["Template", tuple[str, ...]]:
        """Return the template of a spec with a placeholder for each of some patterns, and these.

        >>> template, patterns = Template.by_pattern("plugin({'encoder.*': _, '*': _})")
        >>> patterns, template.filled_by([0.1, 0.2])
        (('encoder.*', '*'), "plugin({'encoder.*': 0.1, '*': 0.2})")

        Raises:
            SpecError: it is no spec, holds a placeholder elsewhere, or two for one pattern.
        """
        call = _call_of(text)
        patterns: list[str] = []
        for node in ast.walk(call):
            if not isinstance(node, ast.Dict):
                continue
            for key, value in zip(node.keys, node.values, strict=True):
                found = [n for n in ast.walk(value) if isinstance(n, ast.Name) and n.id == "_"]
                if not found or not isinstance(key, ast.Constant):
                    continue
                if len(found) > 1 or key.value in patterns:
                    raise SpecError(
                        f"{quoted(text)} holds two placeholders for {key.value!r}: write _ once "
                        "for each pattern"
                    )
                found[0].id = f"_{len(patterns)}"
                patterns.append(str(key.value))
        if not patterns or any(isinstance(n, ast.Name) and n.id == "_" for n in ast.walk(call)):
            raise SpecError(
                f"{quoted(text)} must hold a placeholder _ for each pattern of a mapping, and "
                "nowhere else, as in \"plugin({'encoder.*': _, '*': _})\""
            )
        return cls(ast.unparse(call), head), tuple(patterns)

    def filled_by(self, values: Sequence[float]) -> str:
        """Return the spec with a value for each pattern, in their order."""
        call: ast.AST = _call_of(self.spec)
        for place, value in enumerate(values):
            call = _Fill(value, f"_{place}").visit(call)
        return self._written(call)

    def filled(self, value: float) -> str:
        """Return the spec with ``value`` in the place of the placeholder."""
        return self._written(_Fill(value).visit(_call_of(self.spec)))

    def with_argument(self, name: str, value: Any) -> "Template":
        """Return the template with ``name=value`` added to its call."""
        call = _call_of(self.spec)
        call.keywords.append(ast.keyword(arg=name, value=ast.Constant(value)))
        return Template(ast.unparse(ast.fix_missing_locations(call)), self.head)

    def _written(self, call: ast.AST) -> str:
        text = ast.unparse(call)
        return text if self.head is None else self.head + text[text.index("(") :]


class _Fill(ast.NodeTransformer):
    def __init__(self, value: float, name: str = "_") -> None:
        self.name = name
        # A negative constant is no literal of Python's grammar: unparse wants the minus apart.
        self.value = value

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id != self.name:
            return node
        number = ast.copy_location(ast.Constant(abs(self.value)), node)
        if self.value < 0:
            return ast.copy_location(ast.UnaryOp(ast.USub(), number), node)
        return number


def _call_of(spec: str) -> ast.Call:
    """Return ``spec`` as the call of a plain name, whose arguments are still to be judged."""
    if not isinstance(spec, str):
        raise SpecError(f"a spec must be a string, got {spec!r}")
    if len(spec) > LONGEST:
        raise SpecError(f"a spec has at most {LONGEST} characters, this one has {len(spec)}")
    short = _SHORT.fullmatch(spec)
    text = f"{short[1]}({short[2]})" if short else spec.strip()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            node = ast.parse(text, mode="eval").body
    except (RecursionError, MemoryError) as error:
        raise _too_deep(spec) from error
    except (SyntaxError, ValueError) as error:
        why = error.msg if isinstance(error, SyntaxError) else str(error)
        if why == "invalid syntax":
            why = "it is the name of a plugin, with its arguments in brackets"
        raise SpecError(f"{quoted(spec)} is no spec such as 'name(1e-5)': {why}") from error
    if isinstance(node, ast.Name):
        return ast.Call(node, [], [])
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise SpecError(
            f"{quoted(spec)} is no spec such as 'name(1e-5)': not a call of a plain name"
        )
    return node


def _too_deep(spec: str) -> SpecError:
    # Whether the parser gives up or what reads its tree depends on the version of Python.
    return SpecError(f"{quoted(spec)} is no spec such as 'name(1e-5)': it is nested too deep")


def _arguments(call: ast.Call, spec: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    kwargs: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            raise SpecError(f"{quoted(spec)}: ** is not allowed in a spec")
        if keyword.arg in kwargs:
            raise SpecError(f"{quoted(spec)}: {keyword.arg} is given twice")
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
            found: dict[Any, Any] = {}
            for key, value in zip(node.keys, node.values, strict=True):
                assert key is not None
                name = _literal(key, spec)
                try:
                    if name in found:
                        raise SpecError(f"{quoted(spec)}: {name!r} is given twice")
                    found[name] = _literal(value, spec)
                except TypeError as error:  # a list is no key
                    raise SpecError(f"{quoted(spec)}: {error}") from error
            return found
        case ast.Call(func=ast.Name(id=name)) if name in _SCHEDULES:
            args, kwargs = _arguments(node, spec)
            schedule = _SCHEDULES[name]
            wanted = inspect.signature(schedule)
            if wrong := misfit(wanted, args, kwargs):
                form = f"{name}({', '.join(wanted.parameters)})"
                raise SpecError(f"{quoted(spec)}: {wrong}; the schedule is {form}")
            try:
                return schedule(*args, **kwargs)
            except (SpecError, TypeError) as error:
                raise SpecError(f"{quoted(spec)}: {name}: {error}") from error
        case ast.Call(func=ast.Name(id=name)):
            close = ", ".join(nearest(name, _SCHEDULES, most=2))
            raise SpecError(f"{quoted(spec)}: {name} is no schedule; the nearest are {close}")
    raise SpecError(
        f"{quoted(spec)}: {quoted(ast.unparse(node))} is no literal (a number, string, list, "
        "dict or schedule call): nothing in a spec is evaluated"
    )


def quoted(text: str, most: int = 120) -> str:
    """Return ``text`` as a message shows it, cut if it is long."""
    return repr(text if len(text) <= most else text[: most - 1] + "…")
