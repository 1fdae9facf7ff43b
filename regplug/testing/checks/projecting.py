"""Check of what constraints do after a step: once is enough, and it is no more than it takes."""

from collections.abc import Iterable
from functools import partial

import torch

from regplug.bases.delivered import Delivered
from regplug.testing.bench import Setup
from regplug.testing.registry import Case, check
from regplug.testing.subject import Failure, Skip, Subject

__all__: list[str] = []

SCALES = (1.0, 10.0, 0.1, 1000.0)
# What constraints may be short of by an ε under a root, or in a divisor.
TOLERANCE = 1e-3
# Of the way that weights go, after which they may be in place: two constraints, one after the
# other, go a little too far.
_MOST = 0.75
_WAY_OUT = "; what is meant to be no projection says projects = False in the class"

Weights = dict[str, torch.Tensor]


class _Map:
    """What a plugin makes of weights after a step that leaves them as they are."""

    def __init__(self, subject: Subject, setup: Setup) -> None:
        self._rig = subject.rig(setup, lr=0.0)
        self._start = self._rig.snapshot().weights
        self.pairs = [(w, self(w)) for w in map(self._scaled, SCALES)]
        self.moved = {n for w, to in self.pairs for n in w if not torch.equal(w[n], to[n])}
        if not self.moved:
            raise Skip("it moves no weights where the learning rate is 0, so it is no constraint")

    def __call__(self, weights: Weights) -> Weights:
        with torch.no_grad():
            for name, parameter in self._rig.parameters.items():
                parameter.copy_(weights[name])
        self._rig.step(0)
        return self._rig.snapshot().weights

    def _scaled(self, scale: float) -> Weights:
        return {name: 1.5 * scale * w for name, w in self._start.items()}

    def leaves_some(self) -> bool:
        """Tell whether it leaves some weights alone, and not others of the same tensor."""
        return any(
            bool(((w[name] == to[name]) & (w[name] != 0)).any())
            for w, to in self.pairs
            for name in self.moved
        )

    def forgetting_size(self) -> list[tuple[Weights, Weights]]:
        """Return the pairs in which it makes the same of weights twice as large."""
        found = []
        for weights, once in self.pairs:
            twice = self({name: 2 * w for name, w in weights.items()})
            # Of the smallest weights, an ε may be left.
            if all(_unlike(twice[name], once[name]) is None for name in self.moved):
                found.append((weights, once))
        return found


def _unlike(
    found: torch.Tensor, expected: torch.Tensor, tolerance: float = TOLERANCE
) -> str | None:
    if not found.numel() or not bool(expected.isfinite().all()):
        return None
    scale = float(expected.abs().max())
    gap = float((found - expected).abs().max())
    return None if gap <= tolerance * scale else f"up to {gap:.3g}, of weights of up to {scale:.3g}"


@check("projection", after=("acts", "every-batch", "where"))
def projection(subject: Subject) -> Iterable[Case]:
    """A constraint leaves what it has put in place where it is, and moves weights no further.

    What moves weights after the step whatever the learning rate is, and leaves some of them alone
    or makes the same of larger ones, is one. ``projects = True`` says that each weight goes to the
    nearest point, which is then checked; False, that the plugin is no constraint. What goes a part
    of the way each time, the same for all, is right too.
    """
    plugin = subject.plugin
    if plugin.projects is False:
        raise Skip("it says that it is no projection")
    if isinstance(plugin, Delivered) or subject.remembers or not subject.implements("after_step"):
        raise Skip("it puts no weights anywhere after the step, or not to the same place each time")
    for setup in subject.setups():
        yield f"again, {setup.regime}", partial(_again, subject, setup)
        yield f"no further, {setup.regime}", partial(_no_further, subject, setup)
        if plugin.projects:
            yield f"nearest, {setup.regime}", partial(_nearest, subject, setup)


def _mapping(subject: Subject, setup: Setup) -> _Map:
    found = _Map(subject, setup)
    if not (subject.plugin.projects or found.leaves_some()):
        found.pairs = found.forgetting_size()
    if not found.pairs:
        raise Skip("it leaves no weight alone, so it is no constraint")
    return found


def _again(subject: Subject, setup: Setup) -> None:
    mapping = _mapping(subject, setup)
    for weights, once in mapping.pairs:
        again = mapping(once)
        for name in mapping.moved:
            gap = _unlike(again[name], once[name])
            if gap is None or _a_part_of_the_way(weights[name], once[name], again[name]):
                continue
            raise Failure(
                f"what it made of {name} in one step it moves again in the next, by {gap}, though "
                "nothing else has changed the weights: each row, column or element is to be put in "
                f"place by what was measured of it{_WAY_OUT}"
            )


def _a_part_of_the_way(start: torch.Tensor, once: torch.Tensor, again: torch.Tensor) -> bool:
    first, second = once - start, again - once
    share = float((first * second).sum() / first.square().sum().clamp(min=1e-30))
    return 0 < share < 1 and _unlike(second, share * first, 1e-6) is None


def _no_further(subject: Subject, setup: Setup) -> None:
    mapping = _mapping(subject, setup)
    if not mapping.leaves_some():
        raise Skip("there is nothing that it leaves alone")
    for weights, once in mapping.pairs:
        near = {name: w + _MOST * (once[name] - w) for name, w in weights.items()}
        found = mapping(near)
        for name in mapping.moved:
            w, to = weights[name], once[name]
            moved = (to - w).abs() > TOLERANCE * w.abs()
            rests = (found[name] - near[name]).abs() <= 1e-12 * near[name].abs()
            if bool((moved & rests & (near[name] != 0)).any()):
                at = (moved & rests & (near[name] != 0)).nonzero()[0].tolist()
                raise Failure(
                    f"it moves weights further than to where it would leave them alone: at {at} of "
                    f"{name} from {float(w[tuple(at)]):.4g} to {float(to[tuple(at)]):.4g}, where "
                    f"{float(near[name][tuple(at)]):.4g} is left as it is{_WAY_OUT}"
                )


def _nearest(subject: Subject, setup: Setup) -> None:
    mapping = _mapping(subject, setup)
    generator = torch.Generator().manual_seed(8)
    for weights, once in mapping.pairs:
        others = [to for _, to in mapping.pairs]
        for size in (1.0, 0.3, 0.1, 0.01):
            for centre in (weights, once):
                noisy = {
                    n: w + size * torch.randn(w.shape, dtype=w.dtype, generator=generator) * w.abs()
                    for n, w in centre.items()
                }
                others.append(mapping(noisy))
        for name in mapping.moved:
            w = weights[name]
            far = float((w - once[name]).norm())
            near = min(float((w - other[name]).norm()) for other in others)
            if near < far * (1 - TOLERANCE) - 1e-9:
                raise Failure(
                    f"projects = True says that {name} goes to the nearest point, but it is moved "
                    f"by {far:.6g}, while {near:.6g} away is one that is left as it is"
                )
