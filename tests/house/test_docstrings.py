"""Public names say what they take and give, with an example that runs; plugins their source."""

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from enum import Enum
from typing import Any

import pytest

import regplug
from tests.house.pages import MODULES

ASKED = (*MODULES, "regplug.integrations.accelerate", "regplug.integrations.checkpoint")
# Nobody calls these: sessions and reports make them, and errors take a message.
MADE = ("Session", "SessionView", "Examination")


def public() -> Iterator[Any]:
    for module in ASKED:
        for name in importlib.import_module(module).__all__:
            found = getattr(importlib.import_module(module), name)
            if inspect.isclass(found) or inspect.isfunction(found):
                yield pytest.param(found, id=f"{module}.{name}")


PUBLIC = list(public())
BUILTINS = [each for each in PUBLIC if each.id.startswith("regplug_builtins.")]
OWN = [each for each in PUBLIC if each.id.count(".") == 1 and each not in BUILTINS]


def text(found: Any) -> str:
    return inspect.getdoc(found) or ""


def section(found: Any, *names: str) -> str:
    pattern = rf"^(?:{'|'.join(names)}):\n((?:[ \t]+.*\n|\n)*)"
    return "".join(re.findall(pattern, text(found) + "\n", re.MULTILINE))


@pytest.mark.parametrize("found", PUBLIC)
def test_it_says_what_each_argument_is(found: Callable[..., Any]) -> None:
    assert text(found)
    if found.__name__ in MADE or (inspect.isclass(found) and issubclass(found, Exception | Enum)):
        return
    told = section(found, "Args", *(("Attributes",) if is_dataclass(found) else ()))
    named = set(re.findall(r"^ +\*{0,2}(\w+)(?: \(.*\))?:", told, re.MULTILINE))
    assert set(inspect.signature(found).parameters) <= named


@pytest.mark.parametrize("found", [p for p in PUBLIC if inspect.isfunction(p.values[0])])
def test_it_says_what_it_returns(found: Callable[..., Any]) -> None:
    if inspect.signature(found).return_annotation not in (None, "None"):
        assert section(found, "Returns", "Yields")


@pytest.mark.parametrize("found", OWN)
def test_it_shows_an_example(found: Any) -> None:
    if found is not regplug.SessionView:
        assert ">>> " in text(found)


@pytest.mark.parametrize("found", BUILTINS)
def test_a_plugin_has_formula_example_errors_and_source(found: Any) -> None:
    assert ">>> " in text(found)
    assert section(found, "Raises")
    assert re.search(r'".+", \d{4}(, |\n)', " ".join(section(found, "References").split()))
    assert "https://" in section(found, "References")
