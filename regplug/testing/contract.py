"""The exam as tests that pytest collects: :class:`PluginContract`."""

import inspect
import unittest
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from regplug.testing.exam import check_plugin
from regplug.testing.registry import CHECKS, registered
from regplug.testing.report import Report

__all__ = ["PluginContract"]


class PluginContract:
    """The whole exam, a test for each check.

    Subclass it, and pytest does the rest::

        class TestSmoothness(PluginContract):
            spec = "smoothness(1e-3)"

    A check that does not apply is skipped with its reason; one listed in ``expected_failures`` is
    reported as an expected failure.

    Attributes:
        spec: as in :func:`check_plugin`: a spec, an instance, or a callable that returns one.
        expected_failures: ids of checks that are known to fail, each with the reason.
        model: returns a new model to try the plugin on; None for the exam's own.
        batch: returns ``n`` inputs of the model; None for the exam's own.
        loss: returns the mean loss of what the model puts out for inputs; None for the exam's own.
        where: a selection in place of the plugin's own, to examine the same plugin on other weights
            in another subclass; None for its own.
    """

    spec: ClassVar[Any]
    expected_failures: ClassVar[Mapping[str, str]] = {}
    model: ClassVar[Any] = None
    batch: ClassVar[Any] = None
    loss: ClassVar[Any] = None
    where: ClassVar[Any] = None

    @classmethod
    def examine(cls, *checks: str) -> Report:
        """Return the report of these checks, of all if none is named."""

        def given(name: str) -> Any:
            # Not by attribute access, which would bind a function to the instance.
            found = inspect.getattr_static(cls, name)
            return found.__func__ if isinstance(found, staticmethod) else found

        ids = checks or CHECKS
        return check_plugin(
            given("spec"),
            checks=ids,
            expected_failures={k: v for k, v in cls.expected_failures.items() if k in ids},
            model=given("model"),
            batch=given("batch"),
            loss=given("loss"),
            where=given("where"),
        )


def _test_of(id: str, summary: str) -> Callable[[PluginContract], None]:  # noqa: A002
    def test(self: PluginContract) -> None:
        __tracebackhide__ = True
        report = self.examine(id)
        if not report.passed:
            raise AssertionError(f"{id}: {summary}\n{report}")
        if expected := report.of("expected"):
            import pytest

            pytest.xfail(expected[0].message)
        if not report.of("passed"):
            # pytest knows it too, so that nobody needs pytest who only imports this.
            raise unittest.SkipTest("; ".join({r.message for r in report.of("skipped")}))

    test.__name__ = "test_" + id.replace("-", "_")
    test.__qualname__ = f"{PluginContract.__qualname__}.{test.__name__}"
    test.__doc__ = summary
    return test


for _check in registered():
    _test = _test_of(_check.id, (inspect.getdoc(_check.cases) or "").partition("\n")[0])
    setattr(PluginContract, _test.__name__, _test)
