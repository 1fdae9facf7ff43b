"""Scaled gradients, overflow and half precision: the same weights, or a word about why not."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

import regplug
from tests.helpers.nets import dropout_net

FACTOR = 2.0**10


class Floor(regplug.Plugin):
    """A constraint: no weight below −0.2."""

    @regplug.hookimpl
    def after_step(self, session: regplug.Session) -> None:
        for _, weights, _ in session.updates(regplug.Selection("weights")):
            for w in weights:
                w.clamp_(min=-0.2)


class Pull(regplug.Plugin):
    """Adds to gradients as if they were plain: it knows nothing of scaling."""

    @regplug.hookimpl
    def on_gradients(self, session: regplug.Session) -> None:
        for _, weights, gradients in session.updates(regplug.Selection("weights")):
            for w, g in zip(weights, gradients, strict=True):
                g.add_(w, alpha=0.3)


PLUGINS: dict[str, Any] = {
    "gradients": "l1(0.1, delivery='step')",
    "loss": "l2(0.1, delivery='loss')",
    "proximal": "l1(0.1, delivery='proximal')",
    "decay": "weight_decay(0.1)",
    "schedule": "dropout(linear(0, 0, steps=2))",
    "constraint": Floor,
    "unaware": Pull,
}


def optimizer_of(model: nn.Module, fused: bool) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.0, fused=fused)


def train(which: str, fused: bool, scaled: bool, overflows: tuple[int, ...] = ()) -> Any:
    """Return the weights after each of four good steps."""
    model = dropout_net().double()
    optimizer = optimizer_of(model, fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=FACTOR, growth_interval=2, enabled=scaled)
    plugin = PLUGINS[which]
    plugin = plugin if isinstance(plugin, str) else plugin()
    states = []
    with regplug.attach(model, optimizer, [plugin]) as session:
        for number in range(4):
            for spoilt in (True, False) if number in overflows else (False,):
                generator = torch.Generator().manual_seed(number)
                x = torch.randn(5, 3, generator=generator, dtype=torch.float64)
                optimizer.zero_grad()
                loss = session.loss(model(x).square().mean())
                scaler.scale(loss * float("inf") if spoilt else loss).backward()
                before = [p.detach().clone() for p in model.parameters()]
                steps = session.steps
                scaler.step(optimizer)
                scaler.update()
                if spoilt:
                    assert all(map(torch.equal, before, model.parameters()))
                    assert session.steps == steps
            states.append([p.detach().clone() for p in model.parameters()])
        assert session.steps == 4
    return states


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("which", PLUGINS)
def test_scaling_and_overflow_leave_no_trace(which: str, fused: bool) -> None:
    """Fused, the hooks fire on overflow as well, and gradients are still scaled in them."""
    plain = train(which, fused, scaled=False)
    scaled = train(which, fused, scaled=True, overflows=(0, 2))
    for ours, theirs in zip(scaled, plain, strict=True):
        for w, expected in zip(ours, theirs, strict=True):
            assert torch.allclose(w, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("fused", [False, True])
def test_what_hooks_of_a_scaled_optimizer_see(fused: bool) -> None:
    """The fact behind it: fused, overflow and scale reach the hooks; otherwise neither does."""
    model = dropout_net().double()
    optimizer = optimizer_of(model, fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=FACTOR)
    seen = []
    optimizer.register_step_pre_hook(
        lambda *_: seen.append(next(model.parameters()).grad.abs().max().item())
    )
    scaler.scale(model(torch.ones(1, 3).double()).sum()).backward()
    scale = next(model.parameters()).grad.abs().max().item()
    scaler.step(optimizer)
    assert seen[0] == pytest.approx(scale if fused else scale / FACTOR)
    optimizer.zero_grad()
    scaler.update()
    scaler.scale(model(torch.ones(1, 3).double()).sum() * float("inf")).backward()
    scaler.step(optimizer)
    assert len(seen) == (2 if fused else 1)


def test_gradients_unscaled_by_the_loop_for_clipping_are_not_unscaled_again() -> None:
    for fused in (False, True):
        results = []
        for scaled in (False, True):
            model = dropout_net().double()
            optimizer = optimizer_of(model, fused)
            scaler = torch.amp.GradScaler("cpu", init_scale=FACTOR, enabled=scaled)
            with regplug.attach(model, optimizer, ["l1(0.1)", Pull()]):
                for _ in range(3):
                    optimizer.zero_grad()
                    scaler.scale(model(torch.ones(2, 3).double()).square().sum()).backward()
                    scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                    scaler.step(optimizer)
                    scaler.update()
            results.append([p.detach().clone() for p in model.parameters()])
        for w, expected in zip(*results, strict=True):
            assert torch.allclose(w, expected, rtol=0, atol=1e-12)


# --- half precision ------------------------------------------------------------------------------


def half(dtype: torch.dtype, value: float = 0.1, rows: int = 1000) -> nn.Linear:
    model = nn.Linear(1000, rows, bias=False, dtype=dtype)
    nn.init.constant_(model.weight, value)
    return model


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_values_of_half_precision_weights_are_summed_in_float32(dtype: torch.dtype) -> None:
    """The sum of a million tenths is inf in float16, and far off in bfloat16."""
    model = half(dtype)
    exact = model.weight.double().abs().sum().item()
    if dtype == torch.float16:
        assert model.weight.abs().sum().isinf()
    with regplug.attach(model, plugins=["l1(0.5)", "l2(2.0)"]) as session:
        metrics = session.metrics()
        assert metrics["l1/value"] == pytest.approx(0.5 * exact, rel=1e-5)
        squares = model.weight.double().square().sum().item()
        assert metrics["l2/value"] == pytest.approx(2 * squares, rel=1e-5)
        loss = session.loss(torch.zeros(()))
        assert loss.item() == pytest.approx(0.5 * exact + 2 * squares, rel=1e-5)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    (model(torch.ones(1, 1000, dtype=model.weight.dtype)) * 0 + 1).sum().backward()
    optimizer.step()


def test_a_decay_that_rounds_away_is_told_once() -> None:
    """A thousand decays of 1e-4 leave a bfloat16 weight at 1.0, instead of 0.905."""
    model = half(torch.bfloat16, 1.0, rows=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with regplug.attach(model, optimizer, ["weight_decay(0.1)"]):
        with pytest.warns(UserWarning, match=r"rounds away in torch\.bfloat16 weights"):
            step(model, optimizer)
        for _ in range(3):
            step(model, optimizer)  # a second warning would be an error
    assert (model.weight == 1).all()


def test_an_addition_that_rounds_away_is_told_once() -> None:
    model = half(torch.bfloat16, 1.0, rows=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with regplug.attach(model, optimizer, ["l1(1e-4)"]):
        optimizer.zero_grad()
        model.weight.grad = torch.ones_like(model.weight)
        with pytest.warns(UserWarning, match=r"rounds away in torch\.bfloat16 gradients"):
            optimizer.step()
        optimizer.step()


@pytest.mark.parametrize("spec", ["l1(0.25)", "weight_decay(0.25)"])
def test_what_does_not_round_away_is_not_told(spec: str) -> None:
    model = half(torch.bfloat16, 1.0, rows=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with warnings.catch_warnings(), regplug.attach(model, optimizer, [spec]):
        warnings.simplefilter("error")
        step(model, optimizer)
    assert torch.allclose(model.weight.float(), torch.tensor(0.875), atol=1e-2)


def test_mixed_dtypes_in_one_model_each_get_their_own() -> None:
    model = nn.ModuleDict({"wide": nn.Linear(3, 2), "narrow": nn.Linear(3, 2).bfloat16()})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    before = {name: w.detach().double() for name, w in model.named_parameters() if w.ndim > 1}
    with regplug.attach(model, optimizer, ["l1(0.25)", "l2(0.25)"]) as session:
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        assert session.metrics()["l1/value"] > 0
    for name, w in before.items():
        expected = w - 0.5 * (0.25 * w.sign() + 0.5 * w)
        found = dict(model.named_parameters())[name].double()
        assert torch.allclose(found, expected, atol=1e-6 if name.startswith("wide") else 1e-2)
