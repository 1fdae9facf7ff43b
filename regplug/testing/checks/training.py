"""Checks of what a plugin does to one loop: which weights, when, and in which number format."""

import math
from collections.abc import Iterable, Mapping
from functools import partial

import torch
from torch import nn

import regplug
from regplug.errors import SelectionError
from regplug.penalty import Penalty
from regplug.plugin import Plugin
from regplug.testing.bench import Sample, Setup
from regplug.testing.checks.formula import keeps_dtype
from regplug.testing.noise import noisy_modules, rates
from regplug.testing.registry import Case, check
from regplug.testing.subject import Failure, Skip, Subject, same

__all__: list[str] = []


@check("every-batch", after=("acts", "modes"))
def every_batch(subject: Subject) -> Iterable[Case]:
    """From the same weights and data it does in batch 2, 3, … what it did in batch 1."""
    has_memory = subject.remembers

    def run(setup: Setup) -> None:
        with_it, without = subject.rig(setup), subject.rig(None)
        numbers = without.snapshot().numbers
        # Not the weights at attach, from which a penalty may measure.
        start = {name: 1.5 * w for name, w in without.snapshot().weights.items()}
        effects = []
        for batch in range(1, 4):
            for rig in (with_it, without):
                with torch.no_grad():
                    for name, parameter in rig.parameters.items():
                        parameter.copy_(start[name])
                rig.step(0)
            found, plain = with_it.snapshot(), without.snapshot()
            effect = {name: found.weights[name] - w for name, w in plain.weights.items()}
            acted = found.numbers != numbers or any(bool(e.any()) for e in effect.values())
            effects.append((acted, effect, found.numbers))
            if not effects[0][0]:
                raise Skip("it changed nothing in the first batch here")
            if not acted:
                raise Failure(f"it acted in batch 1, but changed nothing in batch {batch}")
            if has_memory:
                continue
            for name, first in effects[0][1].items():
                gap = float((effect[name] - first).abs().max()) if first.numel() else 0.0
                if not gap <= 1e-9 + 1e-6 * float(first.abs().max() if first.numel() else 0):
                    raise Failure(
                        f"from the same weights and data, what it does to {name} in batch {batch} "
                        f"differs by {gap:.3g} from what it did in batch 1; a plugin that "
                        "remembers implements on_state, and one that draws at random says so by "
                        "stochastic = True"
                    )
            if found.numbers != effects[0][2]:
                raise Failure(f"in batch {batch} it sets the modules otherwise than in batch 1")

    for setup in subject.setups():
        yield setup.regime, partial(run, setup)


@check("zero-strength", after=("strength", "adds"))
def zero_strength(subject: Subject) -> Iterable[Case]:
    """Turned off, it leaves the very bits that a loop without it leaves."""
    off = subject.off
    if not off:
        raise Skip("it has no scheduled attribute with a value that turns it off")

    def silence(model: nn.Module) -> None:
        for module in noisy_modules(model):
            for name, _ in list(rates(module)):
                if "drop" in name or name == "p":
                    setattr(module, name, 0.0)

    def run(delivery: str | None) -> None:
        options = {"dtype": torch.float32, "calm": False, "edit": silence}
        values = {**subject.values, **subject.by_pattern(off)}
        found = subject.rig(Setup(subject.source, delivery, values), **options).run(3)
        expected = subject.rig(None, **options).run(3)
        same(found, expected, "with " + _listed(off), rtol=0, atol=0)
        for name, weight in expected.weights.items():
            if not torch.equal(weight.view(torch.int32), found.weights[name].view(torch.int32)):
                raise Failure(f"with {_listed(off)} {name} has other signs of zero")

    for delivery in subject.deliveries:
        yield delivery or "as given", partial(run, delivery)


def _listed(values: Mapping[str, float | None]) -> str:
    return " and ".join(f"{name} = {value:g}" for name, value in values.items())


@check("dtype", after=("cost",))
def dtype(subject: Subject) -> Iterable[Case]:
    """Shape, dtype and device stay; half precision stays finite."""
    if isinstance(subject.plugin, Penalty):
        for kind in (torch.float32, torch.float64):
            yield f"formula, {_name(kind)}", partial(keeps_dtype, subject.penalty, kind)

    def run(setup: Setup, kind: torch.dtype) -> None:
        if subject.bench.model is not Sample:
            try:
                subject.rig(None, dtype=kind).run(1)
            except RuntimeError as error:
                raise Skip(f"the model does not train in {_name(kind)}: {error}") from error
        rig = subject.rig(setup, dtype=kind)
        expected = {name: p.dtype for name, p in rig.parameters.items()}
        rig.run(2)
        for name, p in rig.parameters.items():
            for what, tensor in (("", p), (" its gradient", p.grad)):
                if tensor is None:
                    continue
                if tensor.dtype != expected[name]:
                    raise Failure(f"{name}:{what} became {tensor.dtype}, was {expected[name]}")
                if not tensor.isfinite().all():
                    raise Failure(f"{name}:{what} is not finite in {_name(kind)}")
        assert rig.session is not None
        _finite_metrics(rig.session, kind)

    def many(kind: torch.dtype) -> None:
        """Sums of many weights overflow or stop growing where they are kept in half precision."""
        layer = nn.Linear(512, 256, bias=False)
        # Not all alike, where many a formula has no gradient: that is for another check.
        nn.init.uniform_(layer.weight, 0.5, 1.5, torch.Generator().manual_seed(8))
        model = nn.Sequential(layer, nn.Dropout(0.1)).to(kind)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        plugin = _within(subject, layer.weight, kind)
        try:
            session = regplug.attach(model, optimizer, [plugin])
        except SelectionError as error:
            raise Skip("it does not fit a model of one layer") from error
        with session:
            loss = session.loss(model(torch.full((2, 512), 1e-3, dtype=kind)).square().mean())
            if not loss.isfinite():
                raise Failure(
                    f"with {layer.weight.numel()} weights of about 1 the loss is {loss:g}"
                )
            loss.backward()
            optimizer.step()
            if not layer.weight.isfinite().all():
                raise Failure(f"{layer.weight.numel()} weights of about 1 did not stay finite")
            _finite_metrics(session, kind)

    for kind in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        for setup in subject.setups():
            yield f"{_name(kind)}, {setup.regime}", partial(run, setup, kind)
    yield "float16, many weights", partial(many, torch.float16)


def _within(subject: Subject, w: torch.Tensor, kind: torch.dtype) -> Plugin:
    """Return the plugin, a penalty so weak that its true value is a number of this dtype.

    Raises:
        Skip: no strength makes it one.
    """
    plugin, most = subject.given(None).make(), torch.finfo(kind).max / 4
    if not isinstance(plugin, Penalty):
        return plugin
    value = float(plugin.value(w.detach().double())) if w.numel() else 0.0
    total = max([1.0, *plugin.strengths().values()]) * abs(value)
    if not total <= most and not math.isfinite(total):
        raise Skip("its value is not finite in float64 either")
    weaker = {
        name: at * most / total
        for name, at in plugin.strengths().items()
        if total > most and name in subject.scheduled and subject.scheduled[name].low == 0
    }
    if total > most and not weaker:
        raise Skip(f"its true value, {total:.3g}, is beyond {_name(kind)}")
    return Setup(subject.source, None, {**subject.values, **weaker}).make()


def _name(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")


def _finite_metrics(session: regplug.Session, kind: torch.dtype) -> None:
    for key, value in session.metrics().items():
        if not abs(value) < float("inf"):
            raise Failure(f"the metric {key} is {value} in {_name(kind)}")


class _Companion(Plugin):
    """Adds to gradients and scales weights, as the plugins that are most common do."""

    @regplug.hookimpl
    def on_gradients(self, session: regplug.Session) -> None:
        for group in session.groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.add_(p.detach(), alpha=0.01)

    @regplug.hookimpl
    def before_step(self, session: regplug.Session) -> None:
        for group in session.groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.mul_(0.99)


@check("order", after=("adds",))
def order(subject: Subject) -> Iterable[Case]:
    """Before or after another plugin it does the same, unless it declares ``order_matters``."""
    if subject.plugin.order_matters:
        raise Skip("it declares that order matters to it")

    def run(setup: Setup) -> None:
        before = subject.rig(setup, others=(_Companion(),)).run(3)
        after = subject.rig(setup, others=(_Companion(),), first=False).run(3)
        same(
            after,
            before,
            "after another plugin it acts otherwise than before it; if it must, say "
            "order_matters = True",
            rtol=1e-6,
            atol=1e-8,
        )

    for setup in subject.setups():
        yield setup.regime, partial(run, setup)
