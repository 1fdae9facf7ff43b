"""Check of an ``on_attach`` that stops half-way: what it did until then must be undone."""

import ast
import inspect
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import regplug
from regplug.plugin import Plugin
from regplug.testing.bench import Setup
from regplug.testing.checks.restoring import bare
from regplug.testing.checks.structure import check_restored, structure
from regplug.testing.registry import Case, check
from regplug.testing.subject import Failure, Skip, Subject
from regplug.testing.surroundings import Surroundings

__all__: list[str] = []

MOST = 8
_CORE = str(Path(regplug.__file__).parent) + os.sep
# Calls that do not fail: between a change and the note of it, they are not where anything stops.
_SAFE = {"append", "add", "extend", "update", "setdefault", "insert", "items", "keys", "values"}
_SAFE |= {"get", "len", "isinstance", "list", "dict", "set", "tuple", "zip", "enumerate", "range"}


class _Stopped(Exception):  # noqa: N818 - told from every real error
    """The error that the exam puts into a plugin."""


@check("stopped-attach", after=("surroundings", "restore"))
def stopped_attach(subject: Subject) -> Iterable[Case]:
    """Where ``on_attach`` stops half-way, ``on_detach`` undoes what was done until then.

    An error is put before each line of ``on_attach``, and of what it calls in the plugin's own
    files, that calls something which could fail. Loop and process must then be as they were.
    """
    setup = subject.given(subject.deliveries[0])
    codes = set(_codes(subject.plugin))
    if not codes:
        raise Skip("it has no on_attach of its own")
    yield setup.regime, partial(_stopped, subject, setup, codes)


def _codes(plugin: Plugin) -> Iterator[CodeType]:
    """Yield the code of each ``on_attach`` that is not regplug's own."""
    for cls in type(plugin).__mro__:
        code = getattr(inspect.unwrap(vars(cls).get("on_attach", None)), "__code__", None)
        if code is not None and not code.co_filename.startswith(_CORE):
            yield code


def _stopped(subject: Subject, setup: Setup, codes: set[CodeType]) -> None:
    rig, plugin = bare(subject, setup)
    whole = _Stops(codes, None)
    with whole.watching():
        regplug.attach(rig.model, rig.optimizer, [plugin]).detach()
    if not whole.places:
        raise Skip("no line of its on_attach calls anything that could fail")
    count = len(whole.places)
    for at in sorted({i * count // MOST for i in range(MOST)} | {count - 1}):
        rig, plugin = bare(subject, setup)
        before, around = structure(rig), Surroundings(rig.model, rig.optimizer)
        stops = _Stops(codes, at)
        try:
            try:
                with stops.watching():
                    session = regplug.attach(rig.model, rig.optimizer, [plugin])
            except Exception:
                # Its own, one that on_detach met then, or one that they were turned into.
                if stops.at is not None:
                    raise
            else:
                session.detach()  # it got over the error
            place = f"where on_attach stops before line {stops.places[-1]}"
            moved = {key for key in before if key.endswith(": memory")}
            check_restored(rig, before, place, left_out=moved)
            if (changed := around.changed()) is not None:
                raise Failure(f"{place}, {changed}")
        finally:
            around.put_back()


class _Stops:
    """Raises before the ``at``-th line that could fail; None for one that only counts them."""

    def __init__(self, codes: set[CodeType], at: int | None) -> None:
        self.codes, self.at = codes, at
        self.files = {code.co_filename for code in codes}
        self.statements = {file: _statements(file) for file in self.files}
        self.places: list[str] = []
        self._inside, self._last = 0, (0, 0)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look at each line of the plugin's files for as long as this lasts."""
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            yield
        finally:
            sys.settrace(before)

    def _trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        code = frame.f_code
        # The frame of a comprehension gets its iterator under this name.
        if code.co_filename not in self.files or ".0" in code.co_varnames:
            return None
        if code in self.codes and event in ("call", "return"):
            self._inside += 1 if event == "call" else -1
        if event == "line" and self._inside:
            first, risky = self.statements[code.co_filename].get(frame.f_lineno, (0, False))
            # Between two lines of one statement is no place, however it is laid out.
            again, self._last = self._last == (id(frame), first), (id(frame), first)
            if risky and not again:
                self.places.append(f"{first} of {Path(code.co_filename).name}")
                if self.at == len(self.places) - 1:
                    self.at, self._inside, self.codes = None, 0, set()
                    raise _Stopped("put in by the exam")
        return self._trace


@lru_cache
def _statements(file: str) -> dict[int, tuple[int, bool]]:
    """Return for each line where its statement begins, and whether that calls what could fail."""
    try:
        tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    except (OSError, SyntaxError):
        return {}
    found: dict[int, tuple[int, bool]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.For | ast.With):
            parts: list[ast.AST] = [node.iter] if isinstance(node, ast.For) else list(node.items)
            last = node.body[0].lineno - 1
        elif isinstance(node, ast.If | ast.While):
            parts, last = [node.test], node.body[0].lineno - 1
        elif isinstance(node, ast.stmt) and not hasattr(node, "body"):
            parts, last = [node], node.end_lineno or node.lineno
        else:
            continue
        statement = node.lineno, any(_could_fail(part) for part in parts)
        found.update(dict.fromkeys(range(node.lineno, max(last, node.lineno) + 1), statement))
    return found


def _could_fail(node: ast.AST) -> bool:
    if isinstance(node, ast.Lambda):
        return False
    if isinstance(node, ast.Raise):
        return True
    if isinstance(node, ast.Call):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func
        name = called.id if isinstance(called, ast.Name) else called
        if name not in _SAFE:
            return True
    return any(_could_fail(child) for child in ast.iter_child_nodes(node))
