"""Plugins that are wrong on purpose, in ways that were shipped or are near at hand.

``WRONG`` maps the id of each check to the plugin that fails there and nowhere else. ``WIDER`` holds
blunders that no single check could be alone in finding, with all the checks that find them.
"""

from functools import partial

from tests.testing.wrong_arguments import FirstModelForEver, ForgetsWhere, HalfAtStep, IgnoresWhere
from tests.testing.wrong_constraints import RowsByColumns
from tests.testing.wrong_costs import AllSigns, Logs, TensorByTensor
from tests.testing.wrong_draws import DrawsUnasked, SameForAll, SharesGenerator
from tests.testing.wrong_formulas import (
    ByRows,
    DetachedValue,
    Expansive,
    HalfDetached,
    HalfGradient,
    HalfThreshold,
    WholeNorm,
    WideGradient,
)
from tests.testing.wrong_lives import (
    FloatRate,
    ForgetsAverage,
    Hoards,
    KeepsSessions,
    LeavesRates,
    OddState,
    Swallows,
)
from tests.testing.wrong_loops import (
    AlwaysInLoss,
    Assigns,
    Everything,
    ForgetsScale,
    HalfSum,
    NeverOff,
    Overwrites,
    OwnStepHook,
    PerPass,
    SoftensGradients,
    StoredGenerator,
    WaitsForInputGradient,
)
from tests.testing.wrong_neighbours import PatchesFunctional
from tests.testing.wrong_places import (
    ByStorage,
    ClampsWeights,
    LeavesConvolutionsOut,
    RootOfSquares,
)
from tests.testing.wrong_ranks import NormOfShard, ReportsShard, SeedPerRank, TimesWorld
from tests.testing.wrong_remains import NotesAtTheEnd
from tests.testing.wrong_runs import Empty, Exits, LeavesRank
from tests.testing.wrong_settings import (
    ByFirstRate,
    CapturesRate,
    CollectsAtAttach,
    ForgetsMaximize,
    IdleWithoutOptimizer,
    LooksWhetherCleared,
    OnlyWatches,
    TurnsToTrain,
)
from tests.testing.wrong_strengths import KeptAtInit, OneStepLate
from tests.testing.wrong_tales import (
    AdaptsWhenAsked,
    CoversOne,
    IgnoresHalf,
    OpensFile,
    TargetOnCpu,
)
from tests.testing.wrong_terms import LossAndTerm

WRONG = {
    "runs": Exits,
    "surroundings": PatchesFunctional,
    "modes": TurnsToTrain,
    "streams": DrawsUnasked,
    "reproducible": SharesGenerator,
    "acts": Empty,
    "cost": TensorByTensor,
    "pure": partial(ClampsWeights, 0.01),
    "arguments": partial(ForgetsWhere, 0.01),
    "differentiable": partial(DetachedValue, 0.01),
    "loss-event": LossAndTerm,
    "attach-again": FirstModelForEver,
    "gradient": partial(HalfGradient, 0.01),
    "finite-difference": partial(HalfDetached, 0.01),
    "dtype": partial(WideGradient, 0.01),
    "extremes": partial(RootOfSquares, 0.01),
    "memory-order": partial(ByStorage, 0.01),
    "where": IgnoresWhere,
    "every-batch": StoredGenerator,
    "adds": Assigns,
    "strength": KeptAtInit,
    "clipping": partial(AlwaysInLoss, 0.01),
    "delivery": partial(HalfAtStep, 0.01),
    "schedule": OneStepLate,
    "shapes": partial(LeavesConvolutionsOut, 0.01),
    "zero-strength": NeverOff,
    "fresh-draws": SameForAll,
    "untouched": Everything,
    "input-grad": WaitsForInputGradient,
    "proximal": partial(HalfThreshold, 0.01),
    "projection": RowsByColumns,
    "separable": partial(ByRows, 0.01),
    "accumulation": PerPass,
    "overflow": ForgetsScale,
    "restore": LeavesRates,
    "stopped-attach": NotesAtTheEnd,
    "maximize": ForgetsMaximize,
    "groups": ByFirstRate,
    "learning-rate": CapturesRate,
    "no-optimizer": IdleWithoutOptimizer,
    "checkpoint-step": OwnStepHook,
    "closure": OnlyWatches,
    "interludes": LooksWhetherCleared,
    "late-weights": CollectsAtAttach,
    "metrics": AdaptsWhenAsked,
    "describe": CoversOne,
    "autocast": IgnoresHalf,
    "collective": LeavesRank,
    "ddp": TimesWorld,
    "fsdp2": NormOfShard,
    "ranks": ReportsShard,
    "state": OddState,
    "resume": ForgetsAverage,
    "device": partial(TargetOnCpu, 0.01),
    "copies": OpensFile,
    "leak": KeepsSessions,
    "memory": AllSigns,
    "growth": Logs,
    "order": SoftensGradients,
    "attribution": Swallows,
    "compile": FloatRate,
}

WIDER = {
    Overwrites: {"adds"},
    partial(WholeNorm, 0.01): {"separable"},
    SeedPerRank: {"ranks", "resume"},
    HalfSum: {"dtype", "fsdp2"},
    Hoards: {"leak"},
    partial(Expansive, 0.01): {"proximal"},
}

# Of these many more sit the checks that concern them in files of their own; the whole exam is slow.
MORE = (
    *("surroundings", "modes", "streams", "reproducible", "fresh-draws", "maximize", "groups"),
    *("learning-rate", "no-optimizer", "closure", "interludes", "late-weights", "metrics"),
    *("describe", "autocast", "device", "stopped-attach", "copies"),
)
