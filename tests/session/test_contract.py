"""The contract: every hook is documented, and fires in the test of the whole order."""

import ast
import inspect
import re

import pytest

from regplug import hookspecs
from tests.session import watching

HOOKS = [
    name for name, hook in vars(hookspecs).items() if hasattr(hook, f"{hookspecs.PROJECT}_spec")
]


def test_there_are_hooks():
    tree = ast.parse(inspect.getsource(hookspecs))
    written = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert written == HOOKS
    assert len(HOOKS) >= 10


@pytest.mark.parametrize("name", HOOKS)
def test_hook_is_documented(name):
    """It says when it fires and what its return means."""
    text = inspect.getdoc(getattr(hookspecs, name))
    assert text, f"{name} has no docstring"
    assert text.startswith("Fires "), "the first words say when"
    assert re.search(r"\b[Rr]eturn(s|ed)\b|``state`` is", text), "what its return means"


@pytest.mark.parametrize("name", HOOKS)
def test_hook_stands_in_the_loop_of_the_module(name):
    assert re.search(rf"\b{name}\b", hookspecs.__doc__)


@pytest.mark.parametrize("name", HOOKS)
def test_hook_fires_in_the_test_of_the_whole_order(name):
    watch = vars(watching.Watch)
    assert hasattr(watch[name], f"{hookspecs.PROJECT}_impl"), f"Watch does not declare {name}"
    for plugin in ("a", "b"):
        line = re.compile(rf"^\d {plugin} {name}$", re.MULTILINE)
        assert line.search(watching.ORDER + watching.CLOSURE_ORDER), f"{name} never fires"


@pytest.mark.parametrize("name", HOOKS)
def test_hook_gives_the_session(name):
    assert "session" in inspect.signature(getattr(hookspecs, name)).parameters
