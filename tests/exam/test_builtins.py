"""The built-in plugins sit the exam that everyone sits, from their entry points."""

import importlib.metadata

import pytest

from regplug.testing import check_plugin

# Arguments for each built-in, and whatever else of it deserves an exam of its own.
SPECS = {
    "l1": ["l1(1e-3)"],
    "l2": ["l2(linear(0, 1e-2, steps=4))"],
    "elastic_net": ["elastic_net(1e-3, cosine(1e-2, 0, steps=10))"],
    "weight_decay": ["weight_decay(0.1)", "weight_decay(0.1, existing='replace')"],
    "dropout": ["dropout(0.2)", "dropout(linear(1, 0.5, steps=10), relative=True)"],
}

# Checks that are known to fail, each with its reason, by the name of the plugin.
EXPECTED_FAILURES: dict[str, dict[str, str]] = {}


def built_ins():
    distribution = importlib.metadata.distribution("regplug")
    return sorted({e.name for e in distribution.entry_points if e.group == "regplug"})


def test_every_built_in_is_examined():
    assert sorted(SPECS) == built_ins()


@pytest.mark.parametrize("spec", [spec for name in built_ins() for spec in SPECS.get(name, ())])
def test_built_in_passes_the_exam(spec):
    report = check_plugin(spec, expected_failures=EXPECTED_FAILURES.get(spec.partition("(")[0]))
    assert report.passed, str(report)
