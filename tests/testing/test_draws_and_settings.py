"""Random numbers, settings of the optimizer, loops, tales, copies and devices are examined."""

import re

import pytest

from regplug.testing import check_plugin
from regplug.testing.registry import registered
from tests.testing import wrong_draws as draws
from tests.testing import wrong_settings as settings
from tests.testing import wrong_tales as tales
from tests.testing.sat import sat
from tests.testing.unusual_lives import UNUSUAL
from tests.testing.wrong_plugins import MORE

CHECKS = [
    *("runs", "surroundings", "modes", "gradient", "finite-difference", "every-batch", "adds"),
    *("streams", "reproducible", "fresh-draws", "maximize", "groups", "learning-rate"),
    *("no-optimizer", "closure", "late-weights", "interludes", "metrics", "describe"),
    *("restore", "copies", "autocast", "device", "dtype"),
]

WRONG = {
    "streams": {
        draws.SeedsAtAttach: "after attaching torch's random numbers are the same under two seeds",
        draws.SeedsEachStep: "Python's random numbers are the same",
        draws.DrawsUnasked: "torch's random numbers are not those of a run without it",
        draws.DrawsWhenOff: "turned off, .*torch's random numbers",
        draws.DrawsFromNumpy: "numpy's random numbers are not those",
        draws.DrawsInMetrics: "torch's random numbers are not those",
        draws.RestoresOldState: "torch's random numbers",
        draws.FreezesMasks: "the masks of drop repeat",
    },
    "reproducible": {
        draws.SeedsByTime: "under the same seeds",
        draws.SharesGenerator: "share none between instances",
    },
    "fresh-draws": {
        draws.SameEachStep: "the same in each step",
        draws.SameForAll: "get the same random numbers",
    },
    "maximize": {
        settings.ForgetsMaximize: 'group\\["maximize"\\]',
        settings.ForgetsMaximizeInLoss: 'group\\["maximize"\\]',
        settings.TurnsTwice: 'group\\["maximize"\\]',
    },
    "groups": {
        settings.FirstGroupOnly: "three groups",
        settings.ByDefaults: "defaults",
        settings.ByFirstRate: "lr=0.05, it acts on",
    },
    "learning-rate": {
        settings.CapturesRate: "still acts with the old one",
        settings.DividesByRate: "divides by it",
        settings.ChangesTensorRate: "tensor",
    },
    "no-optimizer": {
        settings.WantsOptimizer: "NoneType",
        settings.IdleWithoutOptimizer: "without an optimizer",
    },
    "closure": {
        settings.OnlyWatches: "though it says changes_weights = False",
        settings.ShrinksEarly: "changes weights in on_gradients",
        settings.LiesInLineSearch: "on_closure",
    },
    "late-weights": {
        settings.CollectsAtAttach: "leaves that weight alone",
        settings.MasksAtAttach: "leaves that weight alone",
    },
    "interludes": {
        settings.LooksWhetherCleared: "zeroed in place",
    },
    "modes": {settings.TurnsToTrain: "turned .* to train"},
    "runs": {tales.TellsText: "mode"},
    "metrics": {
        tales.WeighsInMetrics: "changed .*weight",
        tales.EvaluatesForMetrics: "changed the mode",
        tales.CountsAsked: "asked again",
        tales.AdaptsWhenAsked: "asked for in each step",
    },
    "describe": {
        tales.NoWords: "describe.. fails",
        tales.OtherWords: "asked again",
        tales.CoversOne: "covers 1 tensors with 7 weights",
    },
    "copies": {
        tales.KeepsGraphOnModule: "can't be copied",
        tales.OpensFile: "it can't be copied",
        tales.SharesWithCopies: "copy of the model makes a difference",
    },
    "autocast": {tales.IgnoresHalf: "under autocast what it does", tales.Scaled: "autocast"},
    "device": {
        tales.TargetOnCpu: "same device.*zeros_like",
        tales.MeasuresOnCpu: "is on cpu for weights on lazy",
        tales.NoiseOnCpu: "same device",
        tales.ThroughNumpy: "numpy",
        tales.MovesWeights: "same device",
        tales.DefaultDtypeBuffer: "default dtype",
    },
}

RIGHT = [
    *(draws.OwnGenerator, draws.Forks),
    *(settings.Signed, settings.ByOwnRate, settings.RelativeToFirstRate),
    *(tales.TargetInPlace, tales.CpuScalar, tales.ThroughCpu, tales.TellsNorm),
]


def made(plugin):
    """Penalties want a strength."""
    return plugin if not hasattr(plugin, "value") else lambda: plugin(0.01)


ALL = pytest.mark.parametrize(
    ("check", "plugin", "message"),
    [(check, plugin, m) for check, wrong in WRONG.items() for plugin, m in wrong.items()],
    ids=lambda x: getattr(x, "__name__", None),
)


def fails_there(plugin, check, message, checks):
    report = sat(made(plugin), checks)
    assert report.failed_checks() == {check}, str(report)
    assert any(re.search(message, failed.message) for failed in report.failures), str(report)


@ALL
def test_it_fails_where_it_is_wrong_and_is_told_why(check, plugin, message):
    """And not in a check without which that one is not judged."""
    (asked,) = [c for c in registered() if c.id == check]
    fails_there(plugin, check, message, [check, *(c for c in asked.after if c in CHECKS)])


@pytest.mark.slow
@ALL
def test_it_fails_nowhere_else(check, plugin, message):
    fails_there(plugin, check, message, CHECKS)


def few(plugins):
    """Yield two that are quick to run, and the others for `make soak`."""
    for plugin in plugins:
        marks = () if plugin in plugins[:2] else pytest.mark.slow
        yield pytest.param(plugin, marks=marks)


@pytest.mark.parametrize("plugin", list(few(UNUSUAL)))
def test_unusual_plugins_that_are_right_pass(plugin):
    report = sat(plugin, MORE)
    assert report.passed, str(report)


@pytest.mark.slow
@pytest.mark.parametrize("plugin", UNUSUAL)
def test_unusual_plugins_that_are_right_pass_the_whole_exam(plugin):
    report = check_plugin(plugin)
    assert report.passed, str(report)


def test_noise_of_the_ranks_own_streams_lets_replicas_drift_apart():
    report = check_plugin(draws.UsersStream, checks=["ddp", "ranks"])
    assert report.failed_checks() == {"ranks"}, str(report)


@pytest.mark.parametrize("plugin", list(few(RIGHT)))
def test_what_looks_alike_and_is_right_passes(plugin):
    report = sat(made(plugin), CHECKS)
    assert report.passed, str(report)
