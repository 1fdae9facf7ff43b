"""Checks of random numbers: whose stream they come from, and whether they are new each time."""

import random
import sys
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn

import regplug
from regplug.testing.bench import Rig, Setup
from regplug.testing.noise import noisy_modules, rates
from regplug.testing.registry import Case, check
from regplug.testing.subject import Failure, Skip, Subject, same

__all__: list[str] = []

STEPS = 6
_OWN = "draw from a torch.Generator of the plugin's own"
# What was done before each number that the user draws.
_MOMENTS = (
    "attaching",
    *(f"step {i}" for i in range(3)),
    "asking for metrics, description and state",
    "detaching",
)
_SAYS_SO = (
    "; if it draws in the forward pass, as dropout does, it says stochastic = True and "
    "shapes_loss = True"
)


def _seed(number: int) -> None:
    torch.manual_seed(number)
    random.seed(number)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(number)


def _drawn() -> dict[str, Any]:
    """Return a number of each stream, as a user's loop draws them."""
    numpy = sys.modules.get("numpy")
    found = {"torch's": torch.rand(()).item(), "Python's": random.random()}
    return found if numpy is None else {**found, "numpy's": float(numpy.random.random())}


def _lived(subject: Subject, setup: Setup | None, seed: int) -> list[dict[str, Any]]:
    """Return what the user draws at attach, between steps, and at the end."""
    rig = subject.rig(None)
    _seed(seed)
    if setup is not None:
        plugin = setup.make()
        rig.session = regplug.attach(rig.model, rig.optimizer, [plugin])
    drawn = [_drawn()]
    for step in range(3):
        rig.step(step)
        drawn.append(_drawn())
    if rig.session is not None:
        rig.session.metrics()
        rig.session.describe()
        rig.session.state_dict()
    drawn.append(_drawn())
    rig.detach()
    return [*drawn, _drawn()]


@check("streams", after=("surroundings", "modes"))
def streams(subject: Subject) -> Iterable[Case]:
    """It leaves the user's streams of random numbers alone, and dropout its masks.

    What the loop draws from torch, ``random`` and numpy after attaching, between steps and after
    detaching is what it draws without the plugin, and never the same under two seeds. Only a plugin
    that says ``stochastic = True`` and ``shapes_loss = True`` may draw from torch's stream, and
    only while it is not turned off. The masks of dropout vary from step to step as they do without
    it.
    """
    for setup in subject.setups():
        yield f"not seeded, {setup.regime}", partial(_not_seeded, subject, setup)
        yield f"left alone, {setup.regime}", partial(_left_alone, subject, setup)
    yield "masks", partial(_masks, subject, subject.setups()[0])


def _not_seeded(subject: Subject, setup: Setup) -> None:
    one, other = _lived(subject, setup, 11), _lived(subject, setup, 12)
    for moment, a, b in zip(_MOMENTS, one, other, strict=True):
        for stream, number in a.items():
            if number == b[stream]:
                raise Failure(
                    f"after {moment} {stream} random numbers are the same under two seeds: it "
                    f"seeds {stream} global stream, which is the user's; {_OWN}"
                )


def _left_alone(subject: Subject, setup: Setup) -> None:
    may_draw = subject.plugin.stochastic and subject.plugin.shapes_loss
    plain = _lived(subject, None, 13)
    runs = [(setup, ["Python's", "numpy's"] if may_draw else list(plain[0]), "")]
    if may_draw and subject.off:
        turned_off = replace(setup, values=subject.off)
        runs.append((turned_off, list(plain[0]), "turned off, "))
    for each, watched, how in runs:
        for moment, a, b in zip(_MOMENTS, _lived(subject, each, 13), plain, strict=True):
            for stream in watched:
                if stream in b and a[stream] != b[stream]:
                    raise Failure(
                        f"{how}after {moment} {stream} random numbers are not those of a "
                        f"run without it, so that data and dropout are others: {_OWN}"
                        + ("" if may_draw or stream != "torch's" else _SAYS_SO)
                    )


class _Patterns:
    """Which outputs of a noisy module were 0, call by call."""

    def __init__(self, rig: Rig) -> None:
        self.seen: dict[str, list[bytes]] = {}
        for path, module in rig.model.named_modules():
            if any(module is noisy for noisy in noisy_modules(rig.model)):
                self.seen[path] = []
                module.register_forward_hook(partial(self._note, path))

    def _note(self, path: str, module: nn.Module, inputs: Any, output: Any) -> None:
        # Of numbers that are none each looks dropped by no mask, or by the same.
        usual = isinstance(output, torch.Tensor) and bool(output.isfinite().all())
        if usual and module.training:
            self.seen[path].append(bytes((output == 0).flatten().to(torch.uint8).tolist()))


def _masks(subject: Subject, setup: Setup) -> None:
    rigs = [subject.rig(setup, calm=False), subject.rig(None, calm=False)]
    # What it hooks on a module comes before.
    patterns = [_Patterns(rig) for rig in rigs]
    found = rigs[0]
    for rig in rigs:
        torch.manual_seed(14)
        rig.run(STEPS)
    for path, expected in patterns[1].seen.items():
        seen = patterns[0].seen[path]
        module = found.model.get_submodule(path)
        # Masks that hide hardly anything, or hardly nothing, are alike by chance.
        trivial = not all(0.1 <= value <= 0.9 for name, value in rates(module) if "p" in name)
        if len(set(expected)) < STEPS or trivial or not module.training or not seen:
            continue
        if len(set(seen)) < min(STEPS, len(seen)):
            raise Failure(
                f"the masks of {path} repeat: in {len(seen)} steps there were only "
                f"{len(set(seen))} of them, without it {len(set(expected))}; random numbers must "
                "go on from step to step"
            )
    found.detach()


@check("reproducible", after=("streams",))
def reproducible(subject: Subject) -> Iterable[Case]:
    """What draws at random ends in the same bits under the same seeds of torch and others."""
    if not subject.plugin.stochastic:
        raise Skip("it does not say stochastic = True")

    def run(setup: Setup) -> None:
        found = []
        for _ in range(2):
            rig = subject.rig(None, calm=False)
            _seed(15)
            rig.session = regplug.attach(rig.model, rig.optimizer, [setup.make()])
            _seed(16)
            found.append(rig.run(3))
            rig.detach()
        same(
            found[1],
            found[0],
            "under the same seeds a second run of a new instance ends otherwise than the first; "
            "seed its generator by a number that the user gives or by torch.initial_seed(), and "
            "share none between instances",
            rtol=0,
            atol=0,
        )

    for setup in subject.setups():
        yield setup.regime, partial(run, setup)


@check("fresh-draws", after=("every-batch", "reproducible"))
def fresh_draws(subject: Subject) -> Iterable[Case]:
    """What says that it draws at random draws anew in each step, and for each weight."""
    if not subject.plugin.stochastic:
        raise Skip("it does not say stochastic = True")
    for setup in subject.setups():
        yield setup.regime, partial(_fresh, subject, setup)


def _fresh(subject: Subject, setup: Setup) -> None:
    with_it, without = subject.rig(setup), subject.rig(None)
    start = {name: w.clone() for name, w in without.snapshot().weights.items()}
    effects: list[dict[str, torch.Tensor]] = []
    for _ in range(STEPS):
        for rig in (with_it, without):
            with torch.no_grad():
                for name, parameter in rig.parameters.items():
                    parameter.copy_(start[name])
            rig.step(0)
        found, plain = with_it.snapshot().weights, without.snapshot().weights
        effects.append({name: (found[name] - w).flatten() for name, w in plain.items()})
    acted = [effect for effect in effects if any(bool(e.any()) for e in effect.values())]
    if len(acted) < STEPS:
        raise Skip("it did not act in each step here")
    if all(_equal(a, b) for a, b in pairwise(acted)) or all(
        _equal(a, b) for a, b in zip(acted, acted[2:], strict=False)
    ):
        raise Failure(
            "from the same weights and data it does the same in each step, though it says "
            "stochastic = True: seed its generator once, or by a seed that the step is part of"
        )
    names = [name for name, e in acted[0].items() if e.numel() > 3 and bool(e.all())]
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            # torch draws the last numbers of a tensor otherwise.
            size = min(acted[0][a].numel(), acted[0][b].numel()) // 2
            if all(torch.allclose(e[a][:size], e[b][:size], rtol=1e-6, atol=0) for e in acted):
                raise Failure(
                    f"{a} and {b} get the same random numbers in each step: seed the generator "
                    "once for all weights, or by a seed that the weight's name is part of"
                )


def _equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.allclose(a[name], b[name], rtol=1e-6, atol=1e-12) for name in a)
