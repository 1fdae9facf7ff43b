"""What a plugin leaves behind is found and named: on the loop, in the process, half attached."""

import re

import pytest
import torch

from tests.testing import wrong_neighbours as near
from tests.testing import wrong_remains as left
from tests.testing.sat import sat

CHECKS = ["every-batch", "surroundings", "restore", "stopped-attach"]

RESTORE = {
    left.KeepsInOptimizerState: r"optimizer\.state of .*average",
    left.MarksWeights: "regularized",
    left.PatchesForward: "forward",
    left.ScalesBuffers: "of_the_exam",
    left.LeavesBuffer: "shrunk_by",
    left.ReplacesMemory: "other memory under",
    left.LeavesTensorHooks: "hooks",
    left.ForgetsAfterFailure: "failed in on_gradients.*shrunk_by",
    left.RestoresGroups: "undone.*learning rate",
    left.RestoresModes: r"undone.*eval\(\)",
    left.RestoresState: "undone.*momentum",
    left.HidesInClosure: "class",
    left.TwiceUndone: "drop.p",
}

STOPPED = {
    left.NotesAtTheEnd: r"stops before line \d+ of wrong_remains.py.*hooks",
    left.ChecksLate: r"stops before line \d+ of wrong_remains.py.*drop.p",
}

SURROUNDINGS = {
    near.GlobalHook: "forward_hooks.*wrong_neighbours",
    near.GlobalStepHook: "optimizer.*hooks",
    near.PatchesFunctional: "functional.layer_norm is",
    near.PatchesClass: "SGD.zero_grad is",
    near.MarksClass: "LayerNorm.regularized is True, was not there",
    near.PatchesRegplug: "Session.describe is",
    near.SwapsFunctions: "functional.silu is",
    near.DefaultDtype: "default dtype",
    near.Deterministic: "deterministic",
    near.Silences: "warning filters",
    near.Environment: "environment.*SHRINKS_MODE",
    near.Logs: "loggers",
    near.Signals: "signal handlers",
    near.FewThreads: "threads",
    near.Hides: "colorsys",
}

RIGHT = [left.Shrinks, left.NotesEach, left.TakesStateBack, left.UnpatchesForward, near.PutsBack]
RIGHT += [near.ImportsLate]


@pytest.mark.parametrize(
    ("check", "plugin", "message"),
    [
        (check, plugin, message)
        for check, wrong in {
            "restore": RESTORE,
            "stopped-attach": STOPPED,
            "surroundings": SURROUNDINGS,
        }.items()
        for plugin, message in wrong.items()
    ],
    ids=lambda x: getattr(x, "__name__", None),
)
def test_what_is_left_behind_is_named(check, plugin, message):
    report = sat(plugin, CHECKS)
    assert report.failed_checks() == {check}, str(report)
    assert any(re.search(message, failed.message) for failed in report.failures), str(report)


@pytest.mark.parametrize("plugin", RIGHT)
def test_what_is_put_back_is_no_fault(plugin):
    report = sat(plugin, CHECKS)
    assert report.passed, str(report)


def test_the_exam_itself_puts_back_what_a_plugin_has_left():
    dtype, filters = torch.get_default_dtype(), torch.nn.functional.layer_norm
    sat(near.PatchesFunctional, ["surroundings"])
    sat(near.DefaultDtype, ["surroundings"])
    assert torch.get_default_dtype() == dtype
    assert torch.nn.functional.layer_norm is filters
