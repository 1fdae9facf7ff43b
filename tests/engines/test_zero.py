"""DeepSpeed's ZeRO through ``deepspeed.initialize``: λ is λ, of whatever each rank has."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import regplug
from tests.engines import loops
from tests.helpers.pair import Pair

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.engines

STAGES = (0, 1, 2, 3)

# Separable and not, of one weight and of rows, with each delivery, decay, constraints and noise.
LOOPS: dict[str, tuple[list[str], str]] = {
    "plain": ([], "sgd"),
    "step": (["l1(0.05)", "l2(0.03, where='all')"], "sgd"),
    "step of rows": (["group_lasso(0.1)", "spectral_norm(0.1)", "orthogonal(0.02)"], "adam"),
    "anchors": (["l2_sp(0.3)"], "adam"),
    "proximal": (["l1(0.05, delivery='proximal')"], "sgd"),
    "proximal of each element": (["l1(0.05, delivery='proximal')"], "adam"),
    "proximal of rows": (["group_lasso(0.1, delivery='proximal')"], "sgd"),
    "decay": (["weight_decay(0.3)"], "sgd"),
    "decay in the place of its own": (["weight_decay(0.3, existing='replace')"], "adamw"),
    "cautious decay": (["weight_decay(0.3, cautious=True)"], "adam"),
    "constraints": (["max_norm(0.5)", "non_negative(where='0.*')"], "sgd"),
    "constraints of the whole": (["l1_ball(1.0)", "hard_threshold(0.5, where='5.*')"], "adam"),
    "noise and a schedule": (["gradient_noise(0.1)", "l2(linear(0, 0.2, steps=3))"], "sgd"),
}


@pytest.mark.parametrize("kind", LOOPS)
@pytest.mark.parametrize("stage", STAGES)
def test_an_engine_comes_to_what_torch_does(pair: Pair, stage: int, kind: str) -> None:
    specs, optimizer = LOOPS[kind]
    found = pair.run(loops.by_engine, stage, specs, optimizer)
    loops.assert_same(found, loops.by_torch(specs, optimizer))


@pytest.mark.parametrize("stage", STAGES)
def test_the_model_computes_with_the_weights_that_are_trained(pair: Pair, stage: int) -> None:
    """Of all groups, also those that the engine steps before the last one."""
    specs = ["l2(0.3, where='all')", "l1(0.1, delivery='proximal', where='all', name='zeros')"]
    for found in pair.run(loops.by_engine, stage, specs):
        assert found["computes"] == found["weights"]


@pytest.mark.parametrize("stage", STAGES)
def test_accumulation_and_clipping_leave_penalties_alone(pair: Pair, stage: int) -> None:
    """The data's gradient is clipped to a hundredth; what is added afterwards acts in full."""
    more = {"gradient_accumulation_steps": loops.MICRO, "gradient_clipping": 0.05}
    specs = ["l2(0.3)", "group_lasso(0.1)", "weight_decay(0.1)"]
    found = pair.run(loops.by_engine, stage, specs, "sgd", more, 3, 30.0)
    wanted = loops.by_torch(specs, micro=loops.MICRO, clip=0.05, steps=3, scale=30.0)
    loops.assert_same(found, wanted)


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("accumulated", [None, "fp32"])
def test_master_weights_of_halves_are_regularized(
    pair: Pair, stage: int, accumulated: str | None
) -> None:
    """With no gradient of the data: (1 − 2λ·lr)ⁿ·w in float32, far below what bf16 can tell."""
    more: dict[str, Any] = {"bf16": {"enabled": True}}
    if accumulated is not None:
        more["data_types"] = {"grad_accum_dtype": accumulated}
    found = pair.run(loops.by_engine, stage, ["l2(0.001)"], "sgd", more, 3, 0.0)
    wanted = loops.by_torch(["l2(0.001)"], scale=0.0, steps=3)
    start = {name: p.bfloat16().float() for name, p in loops.make().named_parameters()}
    exact = {name: p.detach() for name, p in loops.make().named_parameters()}
    for ours in found:
        assert ours["steps"] == 3
        for name, w in start.items():
            mine = torch.tensor(ours["weights"][name])
            shrunk = torch.tensor(wanted["weights"][name]) / exact[name]
            torch.testing.assert_close(mine, w * shrunk, rtol=2e-7, atol=0)
            seen = torch.tensor(ours["computes"][name])
            torch.testing.assert_close(seen, mine.bfloat16().float(), rtol=0, atol=0)


def overflowing(rank: int, stage: int) -> tuple[int, int, list[int], float]:
    """One micro-batch of three overflows in fp16."""
    from deepspeed.accelerator import get_accelerator

    # Of the processor, DeepSpeed asks for instructions that torch does without.
    get_accelerator().is_fp16_supported = lambda: True

    model = loops.make()
    more = {"fp16": {"enabled": True, "initial_scale_power": 4, "hysteresis": 1}}
    engine = loops.started(
        model=model,
        optimizer=loops.OPTIMIZERS["sgd"](loops.groups_of(model)),
        config=loops.config(stage, **more),
    )
    counts = []
    with regplug.attach(engine, engine.optimizer, ["l2(0.5)"]) as session:
        for index, x in enumerate(loops.batches(3)):
            factor = 1e9 if index == 1 else 0.0
            engine.backward(engine(x[rank::2].half()).float().square().mean() * factor)
            engine.step()
            counts.append(session.steps)
        value = session.metrics()["l2/value"]
        skipped = engine.skipped_steps
    engine.destroy()
    return session.steps, skipped, counts, value


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_an_overflow_is_no_step(pair: Pair, stage: int) -> None:
    squares = sum(float(p.half().double().square().sum()) for p in weights())
    for steps, skipped, counts, value in pair.run(overflowing, stage):
        assert (steps, skipped, counts) == (2, 1, [1, 1, 2])
        # Momentum 0.5: of two steps by 2λ·lr = 0.05.
        first = 0.95
        second = first - 0.05 * first - 0.5 * 0.05
        assert value == pytest.approx(0.5 * squares * second**2, rel=1e-5)


def weights() -> list[torch.Tensor]:
    return [p.detach() for p in loops.make().parameters() if p.ndim > 1]


def scheduled_dropout(rank: int, stage: int) -> list[float]:
    model = loops.make()
    engine = loops.started(
        model=model,
        optimizer=loops.OPTIMIZERS["sgd"](loops.groups_of(model)),
        config=loops.config(stage, gradient_accumulation_steps=2),
    )
    rates = []
    with regplug.attach(engine, engine.optimizer, ["dropout(linear(0.5, 0.1, steps=2))"]):
        for x in loops.batches(4):
            rates.append(float(engine.module[2].p))
            engine.backward(engine(x[rank::2]).square().mean())
            engine.step()
        rates.append(float(engine.module[2].p))
    rates.append(engine.module[2].p)
    engine.destroy()
    return rates


@pytest.mark.parametrize("stage", STAGES)
def test_schedules_count_real_steps(pair: Pair, stage: int) -> None:
    for rates in pair.run(scheduled_dropout, stage):
        assert rates == pytest.approx([0.5, 0.5, 0.3, 0.3, 0.1, 0.0])


def scheduled(rank: int, stage: int) -> tuple[dict[str, Any], list[str], bool]:
    """Two sessions, and a scheduler made before: the learning rate of each step is the one used."""
    import warnings

    model = loops.make()
    own = loops.OPTIMIZERS["sgd"](loops.groups_of(model))
    scheduler = torch.optim.lr_scheduler.StepLR(own, 1, gamma=0.5)
    engine = loops.started(
        model=model, optimizer=own, lr_scheduler=scheduler, config=loops.config(stage)
    )
    before = vars(own).get("step")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        first = regplug.attach(engine, own, ["weight_decay(0.3)"], name="first")
        second = regplug.attach(engine.module, engine.optimizer, ["l1(0.05)"], name="second")
        for x in loops.batches(2):
            engine.backward(engine(x[rank::2]).square().mean())
            engine.step()
        counts = first.steps, second.steps
        first.detach()
        for x in loops.batches(2):
            engine.backward(engine(x[rank::2]).square().mean())
            engine.step()
        assert (first.steps, second.steps) == (counts[0], counts[1] + 2) == (2, 4)
        second.detach()
    told = [str(w.message) for w in caught if "overridden" in str(w.message)]
    found = {"weights": loops.master(engine.module)}
    engine.destroy()
    return found, told, vars(own).get("step") is before


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_sessions_and_a_scheduler(pair: Pair, stage: int) -> None:
    model = loops.make().double()
    own = loops.OPTIMIZERS["sgd"](loops.groups_of(model))
    scheduler = torch.optim.lr_scheduler.StepLR(own, 1, gamma=0.5)
    first = regplug.attach(model, own, ["weight_decay(0.3)"], name="first")
    second = regplug.attach(model, own, ["l1(0.05)"], name="second")
    for index, x in enumerate(loops.batches(2) + loops.batches(2)):
        if index == 2:
            first.detach()
        model(x.double()).square().mean().backward()
        own.step()
        own.zero_grad()
        scheduler.step()
    second.detach()
    for found, told, restored in pair.run(scheduled, stage):
        assert (told, restored) == ([], True)
        for name, p in model.named_parameters():
            mine = torch.tensor(found["weights"][name], dtype=torch.float64)
            torch.testing.assert_close(mine, p.detach(), rtol=0, atol=1e-6)


def states(rank: int, stage: int) -> list[bool]:
    """DeepSpeed's own functions find the state of every group after the first step."""
    from deepspeed.utils import safe_get_full_optimizer_state

    model = loops.make()
    engine = loops.started(
        model=model,
        optimizer=loops.OPTIMIZERS["adam"](loops.groups_of(model)),
        config=loops.config(stage),
    )
    with regplug.attach(engine, engine.optimizer, ["l2(0.1)"]):
        engine.backward(engine(loops.batches(1)[0][rank::2]).square().mean())
        engine.step()
    found = [
        bool(safe_get_full_optimizer_state(p, "exp_avg").abs().sum() > 0)
        for p in engine.module.parameters()
    ]
    engine.destroy()
    return found


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_finds_its_states(pair: Pair, stage: int) -> None:
    for found in pair.run(states, stage):
        assert found == [True] * 6


def parametrized(rank: int, stage: int) -> tuple[float, float, str]:
    """Of a weight's norm and direction: their value as shown, and as it is."""
    from deepspeed.utils import safe_get_full_fp32_param

    torch.manual_seed(0)
    layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(6, 5))
    model = torch.nn.Sequential(layer, torch.nn.Tanh(), torch.nn.Linear(5, 1))
    engine = loops.started(
        model=model,
        optimizer=loops.OPTIMIZERS["sgd"](model.parameters()),
        config=loops.config(stage),
    )
    with regplug.attach(engine, engine.optimizer, ["l1(0.1, where='0.*.original*')"]) as session:
        engine.backward(engine(loops.batches(1)[0][rank::2]).square().mean())
        engine.step()
        shown, told = session.metrics()["l1/value"], session.describe()
    own = [p for name, p in engine.module.named_parameters() if "original" in name]
    trained = sum(safe_get_full_fp32_param(p).abs().sum().item() for p in own)
    engine.destroy()
    return shown, 0.1 * trained, told


@pytest.mark.parametrize("stage", [1, 3])
def test_figures_of_parametrized_weights_are_of_what_is_trained(pair: Pair, stage: int) -> None:
    for shown, trained, told in pair.run(parametrized, stage):
        assert shown == pytest.approx(trained, rel=1e-6)
        assert "which are what is trained; metrics are of these" in told
