"""Checks of an optimizer's settings: ``maximize``, groups of their own, and the learning rate."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch

import regplug
from regplug.bases.delivered import Delivered
from regplug.testing.bench import Rig, Setup, Snapshot
from regplug.testing.checks.refusing import refusals
from regplug.testing.registry import Case, check
from regplug.testing.subject import Failure, Skip, Subject, same

__all__: list[str] = []

SLOW, FAST = 0.02, 0.05
_BASICS = ("every-batch", "adds", "finite-difference", "gradient", "reproducible")


def _attached(rig: Rig, setup: Setup) -> Rig:
    rig.plugin = setup.make()
    with refusals():
        rig.session = regplug.attach(rig.model, rig.optimizer, [rig.plugin])
    torch.manual_seed(1)
    return rig


@check("maximize", after=_BASICS)
def maximize(subject: Subject) -> Iterable[Case]:
    """Under ``maximize=True``, of the negative loss, it does what it does to the loss otherwise."""
    if subject.plugin.stochastic:
        raise Skip("it draws at random, and noise has no sign")

    def run(setup: Setup) -> None:
        found = _attached(subject.rig(None, maximize=True), setup)
        for step in range(2):
            found.backward(step, -1.0)
            found.optimizer.step()
        same(
            found.snapshot(),
            subject.rig(setup).run(2),
            "with maximize=True in the optimizer's groups it acts the other way round: what is "
            'added to gradients or to the loss changes its sign where group["maximize"] is set; '
            "or refuse it in on_attach",
        )

    for setup in subject.setups():
        yield setup.regime, partial(run, setup)


def _grouped(subject: Subject, split: Callable[[str], object], **options: object) -> Rig:
    """Return a rig whose optimizer has a group for each answer of ``split``."""
    rig = subject.rig(None)
    groups: dict[object, dict[str, object]] = {}
    for name, p in rig.parameters.items():
        group = groups.setdefault(split(name), {"params": []})
        group["params"].append(p)  # type: ignore[attr-defined]
        if isinstance(rate := split(name), float):
            group["lr"] = abs(rate)
    rig.optimizer = torch.optim.SGD(list(groups.values()), **{"lr": SLOW, **options})  # type: ignore[arg-type]
    return rig


@check("groups", after=_BASICS)
def groups(subject: Subject) -> Iterable[Case]:
    """It acts on the weights of all groups, on each with the options of its own group.

    Groups that are set alike come to the same as one; what the optimizer's ``defaults`` say does
    not count where each group has its own; and of two groups with learning rates of their own each
    ends where it ends if all have its rate.
    """

    def alike(setup: Setup) -> None:
        names = list(subject.rig(None).parameters)
        found = _attached(_grouped(subject, lambda name: names.index(name) % 3), setup).run(2)
        same(
            found,
            subject.rig(setup).run(2),
            "with the weights in three groups it acts otherwise than with one group: go through "
            "all of session.groups, or session.updates",
            rtol=1e-6,
            atol=1e-8,
        )

    def defaults(setup: Setup) -> None:
        found = _attached(_grouped(subject, lambda name: SLOW, lr=0.9), setup).run(2)
        same(
            found,
            subject.rig(setup).run(2),
            "it goes by the optimizer's defaults: what counts is the learning rate of the group, "
            "as session.learning_rate(index) gives it",
        )

    for setup in subject.setups():
        yield f"alike, {setup.regime}", partial(alike, setup)
        yield f"defaults, {setup.regime}", partial(defaults, setup)
        yield f"own rates, {setup.regime}", partial(_own_rates, subject, setup)


def _own_rates(subject: Subject, setup: Setup) -> None:
    slow = subject.touched(setup)[:1]
    if len(subject.touched(setup)) < 2:
        raise Skip("it acts on one weight only")

    def run(of_slow: float, of_others: float, moved: str = "") -> Snapshot:
        """Make a step with a gradient that is the same whatever the weights are."""
        # The sign keeps groups of one rate apart.
        rig = _grouped(subject, lambda name: of_slow if name in slow else -of_others)
        with torch.no_grad():
            for name, p in rig.parameters.items():
                if moved and (name in slow) == (moved == "slow"):
                    p.mul_(1.25)
        _attached(rig, setup)
        generator = torch.Generator().manual_seed(4)
        loss = 0.0 * rig.criterion(rig.data(0))
        for p in rig.parameters.values():
            if p.requires_grad:
                given = torch.randn(p.shape, generator=generator, dtype=p.dtype)
                loss = loss + (p * given).sum()
        assert rig.session is not None
        rig.session.loss(loss).backward()
        rig.optimizer.step()
        return rig.snapshot()

    all_slow, all_fast = run(SLOW, SLOW), run(FAST, FAST)
    for whole, moved in ((all_slow, "others"), (all_fast, "slow")):
        rate = SLOW if moved == "others" else FAST
        other = run(rate, rate, moved)
        names = slow if moved == "others" else [n for n in whole.weights if n not in slow]
        if not all(torch.allclose(whole.weights[n], other.weights[n], rtol=1e-9) for n in names):
            raise Skip("what it does to one weight depends on the others")
    mixed = run(SLOW, FAST)
    for name, found in mixed.weights.items():
        expected = (all_slow if name in slow else all_fast).weights[name]
        if not torch.allclose(found, expected, rtol=1e-7, atol=1e-10):
            gap = float((found - expected).abs().max())
            raise Failure(
                f"where one group has lr={SLOW:g} and the other lr={FAST:g}, it acts on {name} by "
                f"{gap:.3g} otherwise than with the rate of its group: take each weight with its "
                "own group's options, as session.updates and session.learning_rate(index) give them"
            )


@check("learning-rate", after=(*_BASICS, "groups", "proximal"))
def learning_rate(subject: Subject) -> Iterable[Case]:
    """It goes by the learning rate of the step, whatever kind of number that is.

    A rate that a scheduler has changed counts from the very step on, a tensor is as good as a
    float, also where it is filled anew, and with a rate of 0 everything stays finite, a penalty
    leaves the weights alone, and others do no more than at next to 0.
    """
    for setup in subject.setups():
        yield f"changed, {setup.regime}", partial(_changed, subject, setup)
        yield f"a tensor, {setup.regime}", partial(_tensor, subject, setup)
        yield f"zero, {setup.regime}", partial(_zero, subject, setup)


def _changed(subject: Subject, setup: Setup) -> None:
    def effects(first: float, then: float) -> list[dict[str, torch.Tensor]]:
        with_it, without = (
            _attached(subject.rig(None, lr=first), setup),
            subject.rig(None, lr=first),
        )
        start = {name: 1.5 * w for name, w in without.snapshot().weights.items()}
        found = []
        for rate in (first, then):
            for rig in (with_it, without):
                rig.optimizer.param_groups[0]["lr"] = rate
                with torch.no_grad():
                    for name, p in rig.parameters.items():
                        p.copy_(start[name])
                torch.manual_seed(2)
                rig.step(0)
            plain = without.snapshot().weights
            found.append({n: w - plain[n] for n, w in with_it.snapshot().weights.items()})
        return found

    (first_slow, slow_after_slow), (first_fast, _) = effects(SLOW, SLOW), effects(FAST, FAST)
    (little, _), (_, fast_after_slow) = effects(SLOW * 1.001, SLOW), effects(SLOW, FAST)
    if _alike(first_slow, first_fast):
        return  # the rate makes no difference to it
    if _alike(slow_after_slow, fast_after_slow):
        raise Failure(
            f"the learning rate was raised from {SLOW:g} to {FAST:g} after the first step, and it "
            "still acts with the old one: ask session.learning_rate(index) in each step"
        )
    # Not where a few weights alone are treated otherwise, as those that cross a bound.
    if _alike(first_slow, little) and _share_unlike(first_slow, first_fast) > 0.5:
        raise Failure(
            f"with the learning rates {SLOW:g} and {SLOW * 1.001:g} it does the same, and with "
            f"{FAST:g} something else: round the rate nowhere"
        )


def _alike(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    largest = max((float(e.abs().max()) for e in a.values() if e.numel()), default=0.0)
    return all(torch.allclose(a[n], b[n], rtol=1e-6, atol=1e-6 * largest) for n in a)


def _share_unlike(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> float:
    one, other = (torch.cat([e.reshape(-1) for e in found.values()]) for found in (a, b))
    one, other = one[one != 0], other[one != 0]
    return float(((one - other).abs() > 1e-3 * one.abs()).double().mean()) if one.numel() else 0.0


def _tensor(subject: Subject, setup: Setup) -> None:
    rate = torch.tensor(SLOW, dtype=torch.float64)
    found = _attached(subject.rig(None, lr=rate, foreach=False), setup).run(2)
    expected = subject.rig(setup, lr=SLOW, foreach=False).run(2)
    same(found, expected, "where the learning rate is a tensor it acts otherwise", rtol=1e-6)
    if float(rate) != SLOW:
        raise Failure("it changed the tensor that is the learning rate")
    # As schedulers set it.
    rigs = [
        _attached(subject.rig(None, lr=rate, foreach=False), setup),
        subject.rig(setup, lr=SLOW),
    ]
    for step, now in enumerate((SLOW, SLOW, FAST, SLOW / 2)):
        rate.fill_(now)
        rigs[1].optimizer.param_groups[0]["lr"] = now
        for rig in rigs:
            torch.manual_seed(2 + step)
            rig.step(step)
    same(
        rigs[0].snapshot(),
        rigs[1].snapshot(),
        "where the learning rate is a tensor that is filled anew between steps, as schedulers do, "
        "it acts otherwise: keep no float of it, and do not ask whether it is the same object",
        rtol=1e-6,
    )
    for rig in rigs:
        rig.detach()


def _zero(subject: Subject, setup: Setup) -> None:
    rig = _attached(subject.rig(None, lr=0.0), setup)
    before = rig.snapshot()
    found = rig.run(2)
    for name, w in found.weights.items():
        if not w.isfinite().all():
            raise Failure(f"with a learning rate of 0 {name} is not finite: it divides by it")
    assert rig.session is not None
    for key, value in rig.session.metrics().items():
        if not abs(value) < float("inf"):
            raise Failure(f"with a learning rate of 0 the metric {key} is {value}")
    if isinstance(subject.plugin, Delivered):
        # But for rounding: a formula may have a root, or take a matrix apart.
        words = "with a learning rate of 0 it changes the weights"
        same(found, before, words, rtol=1e-12, atol=1e-12)
    else:
        _near_zero(subject, setup)


def _near_zero(subject: Subject, setup: Setup) -> None:
    """Compare what it does at a learning rate of 0 with what it does at the smallest ones."""

    def effect(rate: float) -> dict[str, torch.Tensor]:
        found = _attached(subject.rig(None, lr=rate), setup)
        before = found.snapshot().weights
        after = found.run(1).weights
        found.detach()
        return {name: w - before[name] for name, w in after.items()}

    at_zero, near = effect(0.0), effect(1e-12)
    largest = max((float(e.abs().max()) for e in near.values() if e.numel()), default=0.0)
    for name, e in at_zero.items():
        # To do less is right where a step is none; and a weight that lies on a bound may cross it.
        gaps = (e - near[name]).abs() * (e.abs() > near[name].abs())
        if gaps.numel() and float((gaps > 1e-9 + 1e-2 * largest).double().mean()) > 0.3:
            raise Failure(
                f"with a learning rate of 0 it moves {name} by {float(gaps.max()):.3g} otherwise "
                "than with one of 1e-12: 0 is a rate like any other, as in a warm-up, and not the "
                "lack of one"
            )
