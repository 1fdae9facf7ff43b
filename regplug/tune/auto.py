"""Where an automatic path begins: the smallest strength that keeps every selected weight at zero.

At zero weights the objective rests if the proximal operator of the loss's gradient step is zero
again, prox_tλ(−t·∇L(0)) = 0; for L1 that is λ ≥ max_j |∂L/∂w_j|. The gradient is taken from the
user's own loop: it runs once with a plugin that holds the selected weights at zero while all others
(intercepts) are trained, and watches their gradients.
"""

import math
from typing import Any

import torch

from regplug import Penalty, Plugin, SessionView, hookimpl
from regplug.discovery.catalog import load
from regplug.errors import RegplugError, SpecError
from regplug.selection.where import Selection
from regplug.tune.fits import Work, failed
from regplug.tune.grid import Auto, Axis, Grid
from regplug.tune.seeding import seed_for, seeded

__all__ = ["AtZero", "check_automatic", "found", "smallest_zeroing"]


class AtZero(Plugin):
    """Holds the selected weights at zero and watches the gradient of the loss there.

    To a loop it looks like the penalty whose place it takes.

    Args:
        penalty: the penalty.
    """

    def __init__(self, penalty: Penalty) -> None:
        self.name = penalty.name
        self.strength, self.delivery, self.where = 1.0, penalty.delivery, penalty.where
        self._selection = Selection(penalty.where)
        self._steps = 0
        self._last: list[torch.Tensor] = []
        self._change = math.inf
        self._sums: list[torch.Tensor] = []
        self._earlier: list[torch.Tensor] = []
        self._counts = (0, 0)

    @hookimpl
    def on_attach(self, session: SessionView) -> None:
        """Set the weights to zero."""
        self._clear(session)

    @hookimpl
    def on_gradients(self, session: SessionView) -> None:
        """Take the gradients, and leave zeros in their place."""
        gradients = []
        for entry in session.coverage(self._selection).trainable:
            gradient = entry.parameter.grad
            # The only device without float64 is Apple's.
            wide = torch.float32 if entry.parameter.device.type == "mps" else torch.float64
            if gradient is None:
                gradients.append(torch.zeros_like(entry.parameter, dtype=wide))
                continue
            gradients.append(gradient.detach().to(wide, copy=True))
            gradient.zero_()
        self._watch(gradients)

    @hookimpl
    def after_step(self, session: SessionView) -> None:
        """Set the weights back to zero, whatever the optimizer did."""
        self._clear(session)

    def gradients(self) -> list[torch.Tensor]:
        """Return the gradient at zero: the last one of a full-batch loop that has settled.

        Where gradients still change from step to step (batches), it is their mean over the later
        half of the steps or more.

        Raises:
            RegplugError: there was no step.
        """
        if not self._steps:
            raise RegplugError("the loop made no optimizer step with the plugins that it was given")
        if self._change < 1e-3:
            return self._last
        count = sum(self._counts)
        return [(a + b) / count for a, b in zip(self._earlier, self._sums, strict=True)]

    def _watch(self, gradients: list[torch.Tensor]) -> None:
        if self._last:
            moved = sum(
                float((a - b).square().sum()) for a, b in zip(gradients, self._last, strict=True)
            )
            size = sum(float(g.square().sum()) for g in gradients)
            self._change = math.sqrt(moved / size) if size else 0.0
        zeros = [torch.zeros_like(g) for g in gradients]
        if self._steps & (self._steps - 1) == 0:  # at steps 0, 1, 2, 4, 8 … a new sum begins
            self._earlier, self._sums = self._sums or zeros, zeros
            self._counts = (self._counts[1], 0)
        torch._foreach_add_(self._sums, gradients)
        self._counts = (self._counts[0], self._counts[1] + 1)
        self._last = gradients
        self._steps += 1

    def _clear(self, session: SessionView) -> None:
        with torch.no_grad():
            for entry in session.coverage(self._selection).trainable:
                entry.parameter.zero_()


def check_automatic(grid: Grid) -> Grid:
    """Return the grid with proximal delivery for its automatic axes, where they say none.

    Raises:
        SpecError: the plugin of an automatic axis is no penalty, or is delivered otherwise.
    """
    for axis in grid.automatic:
        plugin = load(axis.spec(1.0))
        if not isinstance(plugin, Penalty):
            raise SpecError(
                f"grid[{axis.key!r}]: 'auto' is for penalties, and {plugin.name} is none"
            )
        if plugin.delivery == "auto":
            grid = grid.with_argument(axis.key, "delivery", "proximal")
            load(next(a for a in grid.axes if a.key == axis.key).spec(1.0))
        elif plugin.delivery != "proximal":
            raise SpecError(
                f"grid[{axis.key!r}]: 'auto' begins where all weights are exactly zero, which only "
                f"delivery='proximal' gives, not {plugin.delivery!r}"
            )
    return grid


def found(grid: Grid, work: Work, **weights: Any) -> Grid:
    """Return the grid with the strengths of its automatic axes, from one run of the loop.

    The other plugins are there as well, with their first strengths.

    Args:
        grid: has an automatic axis.
        work: the search's.
        weights: ``sample_weight``, for a loop that takes it.

    Raises:
        RegplugError: the loop raised.
        SpecError: no strength keeps the weights at zero, or any does.
    """
    plugins: list[Plugin] = []
    probes: dict[str, AtZero] = {}
    for axis in grid.axes:
        if isinstance(axis.values, Auto):
            penalty = load(axis.spec(1.0))
            assert isinstance(penalty, Penalty)
            probes[axis.key] = AtZero(penalty)
            plugins.append(probes[axis.key])
        else:
            plugins.append(load(axis.spec(axis.values[0])))
    try:
        with seeded(seed_for(work.seed, 0)):
            work.train(work.X, work.y, plugins, **weights)
        gradients = {key: probe.gradients() for key, probe in probes.items()}
    except Exception as error:
        what = f"grid[{next(iter(probes))!r}]: the run that looks for the largest strength"
        raise failed(what, error) from error
    return grid.with_values(
        {
            axis.key: axis.values.below(smallest_zeroing(axis, gradients[axis.key]))
            for axis in grid.axes
            if isinstance(axis.values, Auto)
        }
    )


def smallest_zeroing(axis: Axis, gradients: list[torch.Tensor]) -> float:
    """Return the smallest strength whose proximal operator keeps weights with these gradients at 0.

    It is looked for by bisection of the plugin's own formula, to the last bits.

    Raises:
        SpecError: no strength does, or even the smallest.
    """

    def zeroes(strength: float) -> bool:
        penalty = load(axis.spec(strength))
        assert isinstance(penalty, Penalty)
        return not any(bool(penalty.proximal(-g, 1.0).any()) for g in gradients)

    steepest = max((float(g.abs().max()) for g in gradients if g.numel()), default=0.0)
    if not math.isfinite(steepest) or steepest == 0:
        raise SpecError(
            f"grid[{axis.key!r}]: 'auto' needs the loss's gradient at zero weights, which is "
            f"{steepest:g} here (as in a network whose layers are all zero); select one layer by "
            "where=, or list the strengths"
        )
    high = steepest
    while not zeroes(high):
        high *= 2
        if high > steepest * 1e12:
            raise SpecError(
                f"grid[{axis.key!r}]: no strength makes all weights zero; list the strengths"
            )
    low = high / 2
    while zeroes(low):
        high, low = low, low / 2
        if low < steepest * 1e-12:
            raise SpecError(f"grid[{axis.key!r}]: any strength makes all weights zero; list them")
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (low, middle) if zeroes(middle) else (middle, high)
    return high
