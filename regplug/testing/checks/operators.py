"""Check of a penalty's proximal operator, at every strength at which it matters."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial

import torch

from regplug.errors import RegplugError
from regplug.penalty import Penalty
from regplug.testing.checks.formula import close_to, weights_away_from_zero
from regplug.testing.registry import Case, check
from regplug.testing.subject import Failure, Skip, Subject

__all__: list[str] = []

STEPS = (0.1, 1.0, 4.0)
# Of the weights themselves, what the gradient comes to with a step of 1.
SHARES = (0.1, 0.5, 2.0)
EACH = "a step for each element"

Step = float | torch.Tensor


@check("proximal", after=("strength",))
def proximal(subject: Subject) -> Iterable[Case]:
    """The proximal operator minimises its objective; it is non-expansive if the value is convex.

    At the strength that was given, and at those that move weights by a tenth of their size, by half
    of it and to the end; where the value is not convex, those that leave the objective convex.
    """
    penalty = subject.penalty
    if type(penalty).proximal is Penalty.proximal:
        raise Skip("it has no proximal operator")
    runs: list[Case] = [("one step", partial(_minimises, subject, "one step"))]
    if penalty.separable or penalty.elementwise_steps:
        runs += [(EACH, partial(_minimises, subject, EACH)), ("step 0", partial(_stays, subject))]
    if type(penalty).proximal_ is not Penalty.proximal_:
        runs.append(("in place", partial(_in_place, subject)))
    runs.append(("non-expansive", partial(_non_expansive, subject)))
    for regime, run in runs:
        yield regime, torch.no_grad()(run)


def _penalties(subject: Subject) -> Iterator[Penalty]:
    """Yield it as it is given, and then as strong as it takes to move weights."""
    yield (penalty := subject.penalty)
    w = next(weights_away_from_zero())
    size = float((penalty.strength * penalty.gradient(w)).norm())
    if not 0 < size < float("inf"):
        return
    for share in SHARES:
        factor = share * float(w.norm()) / size
        with suppress(RegplugError):  # beyond what its strength may be
            setup = subject.changed(subject.loud(None), lambda value, f=factor: value * f)  # type: ignore[misc]
            stronger = setup.make()
            assert isinstance(stronger, Penalty)
            yield stronger


def _weights() -> Iterator[torch.Tensor]:
    yield from weights_away_from_zero()
    yield 8 * next(weights_away_from_zero())


def _objective(penalty: Penalty, u: torch.Tensor, w: torch.Tensor, step: Step) -> float:
    return float(((u - w).square() / (2 * step)).sum() + penalty.strength * penalty.value(u))


def _chords(penalty: Penalty) -> Iterator[tuple[float, float]]:
    """Yield how far the value is above each of some chords, and ½‖u − w‖² below it."""
    for a in _weights():
        others = [a.flip(0) * 0.7 - 0.1, 0.5 * a, 1.1 * a, -a]
        for element in range(a.numel()):
            one = a.clone()
            one.view(-1)[element] *= 0.8
            others.append(one)
        for b in others:
            for t in (0.25, 0.5, 0.75):
                chord = float((1 - t) * penalty.value(a) + t * penalty.value(b))
                above = float(penalty.value((1 - t) * a + t * b)) - chord
                square = t * (1 - t) / 2 * float((a - b).square().sum())
                yield above - 1e-9 * abs(chord) - 1e-12, square


def _bent(penalty: Penalty) -> float:
    """Return how much of ½‖u − w‖² it takes to make the value convex, as far as is seen."""
    return max((above / square for above, square in _chords(penalty) if square), default=0.0)


def _minimises(subject: Subject, steps: str) -> None:
    generator = torch.Generator().manual_seed(6)
    for number, penalty in enumerate(_penalties(subject)):
        bent = _bent(penalty)
        for w in _weights():
            for size in STEPS:
                if number and bent * penalty.strength * size > 0.7:
                    continue  # a formula may well be one for smaller steps alone
                step: Step = size
                if steps == EACH:
                    step = size * torch.rand(w.shape, dtype=w.dtype, generator=generator)
                found = penalty.proximal(w.clone(), step)
                if found.shape != w.shape:
                    raise Failure(f"proximal(w, step) has shape {tuple(found.shape)}")
                least = _objective(penalty, found, w, step)
                for u in _others(penalty, found, w, step, generator):
                    if (less := _objective(penalty, u, w, step)) < least - 1e-9 * max(
                        1.0, abs(least)
                    ):
                        raise Failure(
                            f"with strength {penalty.strength:.4g} and step {size:g} its objective "
                            f"½‖u − w‖²/step + λ·value(u) is {least:.9g} at the point it "
                            f"returns, but {less:.9g} at another"
                        )


def _others(
    penalty: Penalty, found: torch.Tensor, w: torch.Tensor, step: Step, generator: torch.Generator
) -> Iterator[torch.Tensor]:
    """Yield points at which the objective could be less: far, near, by one element, downhill."""
    for scale in (0.0, *(10.0**-k for k in range(5) for _ in range(6))):
        noise = torch.randn(w.shape, dtype=w.dtype, generator=generator)
        yield from (found + scale * noise, found * (1 - scale), scale * w)
    for row in range(len(found)):
        for factor in (0.0, 0.5, 0.9, 0.999, 1.001, 1.1):
            shrunk = found.clone()
            shrunk[row] *= factor
            yield shrunk
    for element in range(found.numel()):
        for shift in (0.3, -0.3, 1e-2, -1e-2, 1e-3, -1e-3):
            moved = found.clone()
            moved.view(-1)[element] += shift
            yield moved
    slope = (found - w) / step + penalty.strength * penalty.gradient(found)
    if bool(slope.isfinite().all()):
        # An element at 0 is at a kink, where there may be no downhill.
        for direction in (slope, slope * (found != 0)):
            for k in range(1, 7):
                yield found - 10.0**-k * step * direction


def _stays(subject: Subject) -> None:
    for penalty in _penalties(subject):
        for w in weights_away_from_zero():
            step = torch.ones_like(w)
            step[0] = 0
            for start in (w, w * 0):
                found = penalty.proximal(start.clone(), step)[0]
                if not torch.allclose(found, start[0], rtol=1e-12, atol=1e-15):
                    zero = "" if start is w else ", a weight of 0 too"
                    raise Failure(f"elements whose step is 0 must stay as they are{zero}")


def _in_place(subject: Subject) -> None:
    for penalty in _penalties(subject):
        weights = list(weights_away_from_zero())
        expected = [penalty.proximal(w.clone(), 0.5) for w in weights]
        penalty.proximal_(weights, 0.5)
        for w, other in zip(weights, expected, strict=True):
            close_to(w, other, "proximal_([w, …], step), against proximal(w, step),")


def _non_expansive(subject: Subject) -> None:
    for penalty in _penalties(subject):
        if _bent(penalty) > 0:
            raise Skip("the value is not convex")
        for a in weights_away_from_zero():
            b = a.flip(0) * 0.7 - 0.1
            for step in STEPS:
                apart = penalty.proximal(a.clone(), step) - penalty.proximal(b.clone(), step)
                if apart.norm() > (a - b).norm() * (1 + 1e-9):
                    raise Failure(
                        f"the value is convex, but with step {step:g} proximal points are "
                        f"{float(apart.norm()):.4g} apart where the weights are "
                        f"{float((a - b).norm()):.4g}"
                    )
