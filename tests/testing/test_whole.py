"""One cause, one failure: how many checks wrong plugins fail, and which the first line names."""

import importlib
import pkgutil
import statistics
from functools import partial

import pytest

import tests.testing
from regplug.testing import CHECKS
from tests.testing.test_constraints import weak
from tests.testing.test_kinds import check_of, classes, factory
from tests.testing.whole import whole
from tests.testing.wrong_constraints import Constraint
from tests.testing.wrong_plugins import WIDER, WRONG

MOST = 4


def wrong_plugins():
    """Yield every wrong plugin of this folder, with the check that it says that it fails."""
    for found in pkgutil.iter_modules(tests.testing.__path__):
        if found.name.startswith("wrong_") and found.name != "wrong_plugins":
            module = importlib.import_module(f"tests.testing.{found.name}")
            for cls in classes(module):
                if check_of(cls) in CHECKS:
                    is_weak = found.name == "wrong_constraints" and not issubclass(cls, Constraint)
                    yield (weak if is_weak else factory)(cls), check_of(cls)


ALL = list(wrong_plugins())


def name(plugin):
    return getattr(plugin, "func", plugin).__name__


def test_there_are_many_and_for_each_check():
    assert len(ALL) >= 150
    named = {name(plugin) for plugin, _ in ALL} | {name(plugin) for plugin in WRONG.values()}
    assert len(named) >= 150
    assert {check for _, check in ALL} | set(WRONG) == set(CHECKS)


@pytest.mark.slow
@pytest.mark.parametrize(("plugin", "check"), ALL, ids=[name(plugin) for plugin, _ in ALL])
def test_the_first_line_is_the_likeliest_cause(plugin, check):
    """Of one that fails in several checks, the first is the one that it is known for."""
    report = whole(plugin)
    assert str(report).startswith(f"{check} failed: "), str(report)
    assert len(report.failed_checks()) <= MOST, str(report)


@pytest.mark.slow
def test_the_median_wrong_plugin_fails_one_check_and_none_more_than_four():
    several = [*(plugin for plugin, _ in ALL), *WRONG.values(), *WIDER]
    counts = {
        name(p): len(whole(p).failed_checks()) for p in several if isinstance(p, type | partial)
    }
    assert statistics.median(counts.values()) == 1
    assert max(counts.values()) <= MOST, counts
    assert min(counts.values()) >= 1, counts
