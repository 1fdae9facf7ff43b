"""Stochastic depth: the rate at which whole residual blocks are dropped, over time and depth."""

import re
from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from regplug import Patterns, SessionView, hookimpl
from regplug.errors import SpecError
from regplug.schedules import ScheduleLike
from regplug_builtins._rates import Followed, ScheduledRates, Target, is_rate

__all__ = ["DropPath", "is_stochastic_depth"]

DEPTHS = ("linear", "uniform", "own")

# By the names that libraries give them: timm's and transformers' DropPath, torchvision's
# StochasticDepth, DropConnect of EfficientNets; and the attributes that hold their rate.
_MODULE = re.compile(r"(?i)drop_?path|stochastic_?depth|drop_?connect")
_ATTRIBUTE = re.compile(r"p|rate|prob|drop_?prob|drop_?rate|drop_path(?:_(?:prob|rate))?")


class DropPath(ScheduledRates):
    r"""Sets the rate of every stochastic-depth module to a schedule, at each step.

    Found by the module's type, whose name says DropPath, StochasticDepth or DropConnect (timm,
    transformers, torchvision), and its attribute ``drop_prob``, ``p`` and the like. Blocks that
    have several such modules count once. The rate of the l-th of L blocks is

    - ``depth="linear"``: rate·l/L, so that the first is hardly ever dropped and the last with
      the rate that is asked for, as the authors propose;
    - ``depth="uniform"``: rate;
    - ``depth="own"``: rate·own/max own, which keeps the model's proportions.

    The rate for a step holds from the end of the step before it. Detaching restores each module's
    own. Under ``torch.compile`` a rate that moves compiles once; as these modules ask whether it
    is 0, it breaks the graph.

    Args:
        rate: the probability of dropping the deepest block, within [0, 1], or a schedule of it
            over the step count.
        depth: how it grows with depth, one of the above.
        where: which modules: glob patterns on their qualified names, ``"!pattern"`` to exclude, a
            list.
        name: the key of its metrics.

    Raises:
        SpecError: ``rate`` leaves [0, 1], or ``depth`` is none of these.
        SelectionError: there is no such module in the model, or ``where`` matches none of them.

    References:
        Gao Huang, Yu Sun, Zhuang Liu, Daniel Sedra, Kilian Q. Weinberger, "Deep Networks with
        Stochastic Depth", 2016, https://arxiv.org/abs/1603.09382.
        Gustav Larsson, Michael Maire, Gregory Shakhnarovich, "FractalNet: Ultra-Deep Neural
        Networks without Residuals", 2017, https://arxiv.org/abs/1605.07648.

    >>> import regplug, torch
    >>> class StochasticDepth(torch.nn.Module):
    ...     def __init__(self, p):
    ...         super().__init__()
    ...         self.p = p
    >>> paths = [StochasticDepth(0.0), StochasticDepth(0.0)]
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), *paths)
    >>> session = regplug.attach(model, plugins=[DropPath(0.2)])
    >>> [model[1].p, model[2].p]
    [0.1, 0.2]
    >>> session.detach(); model[2].p
    0.0
    """

    kind = "stochastic-depth rate"
    rate = Followed(low=0.0, high=1.0)

    def __init__(
        self,
        rate: ScheduleLike,
        *,
        depth: str = "linear",
        where: str | Sequence[str] = "*",
        name: str | None = None,
    ) -> None:
        if depth not in DEPTHS:
            raise SpecError(f"depth must be one of {', '.join(DEPTHS)}, got {depth!r}")
        self.rate = rate
        self.depth = depth
        self.where = Patterns(where).where
        self.name = name
        self._factors: list[float] = []

    def find(self, model: nn.Module) -> Iterator[Target]:
        """Yield every stochastic-depth rate of the model."""
        for path, module in model.named_modules():
            if not is_stochastic_depth(module):
                continue
            for attribute, value in vars(module).items():
                # Libraries write 0 for no dropping, and an int where they mean a float.
                rate = float(value) if type(value) is int else value
                if _ATTRIBUTE.fullmatch(attribute) and is_rate(rate):
                    name = f"{path}.{attribute}" if path else attribute
                    yield Target(module, attribute, name, rate)

    def begin(self, targets: Sequence[Target]) -> None:
        """Work out each target's share of the rate."""
        largest = max(target.own for target in targets)
        if self.depth == "own" and largest == 0:
            raise SpecError(f"{self.name}: depth='own', but every own rate of the model is 0")
        blocks = [_block(target.name) for target in targets]
        levels = {block: level for level, block in enumerate(dict.fromkeys(blocks), start=1)}
        shares: dict[str, list[float]] = {
            "linear": [levels[block] / len(levels) for block in blocks],
            "uniform": [1.0] * len(targets),
            "own": [target.own / max(largest, 1e-300) for target in targets],
        }
        self._factors = shares[self.depth]

    def rate_at(self, step: int, index: int, target: Target) -> float:
        """Return the schedule's value, multiplied by the target's share of it."""
        return type(self).rate.at(self, step) * self._factors[index]

    def together(self, index: int, target: Target) -> object:
        """Return what tells rates apart: their share."""
        return self._factors[index]

    @hookimpl
    def on_metrics(self, session: SessionView) -> Mapping[str, float]:
        """Return the rate of the deepest block."""
        return {"rate": self.rate, **self.figures_by_pattern()}


def is_stochastic_depth(module: nn.Module) -> bool:
    """Whether a module drops whole paths, by the name of its type.

    >>> is_stochastic_depth(nn.Dropout())
    False
    """
    return _MODULE.search(type(module).__name__) is not None


def _block(name: str) -> str:
    """Return what tells blocks apart: of blocks.3.drop_path1.drop_prob it is blocks.3."""
    module = name.rpartition(".")[0]
    parent, _, leaf = module.rpartition(".")
    return parent if _MODULE.search(leaf) else module
