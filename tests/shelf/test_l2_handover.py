"""Where torch's own weight_decay comes to the same as l2 at the step, the optimizer does it."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import regplug
from tests.shelf.left_to_torch import DECAY, SPEC, backward, close, network, train

Make = Callable[..., torch.optim.Optimizer]

COUPLED: dict[str, Make] = {
    "SGD": lambda p, **k: torch.optim.SGD(p, lr=0.05, **k),
    "SGD momentum": lambda p, **k: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, **k),
    "Adam": lambda p, **k: torch.optim.Adam(p, lr=0.05, **k),
    "Adam amsgrad": lambda p, **k: torch.optim.Adam(p, lr=0.05, amsgrad=True, **k),
    "Adagrad": lambda p, **k: torch.optim.Adagrad(p, lr=0.05, **k),
    "Adadelta": lambda p, **k: torch.optim.Adadelta(p, lr=0.5, **k),
    "Adamax": lambda p, **k: torch.optim.Adamax(p, lr=0.05, **k),
    "ASGD": lambda p, **k: torch.optim.ASGD(p, lr=0.05, **k),
    "NAdam": lambda p, **k: torch.optim.NAdam(p, lr=0.05, **k),
    "RAdam": lambda p, **k: torch.optim.RAdam(p, lr=0.05, **k),
    "RMSprop": lambda p, **k: torch.optim.RMSprop(p, lr=0.05, momentum=0.5, **k),
}
FUSED = ("SGD", "SGD momentum", "Adam", "Adam amsgrad", "Adagrad")


def shows_it(model: nn.Module, optimizer: torch.optim.Optimizer) -> bool:
    """Whether ``.grad`` shows anything after a step."""
    optimizer.zero_grad()
    backward(model, 99)
    before = [p.grad.clone() for p in model.parameters()]
    optimizer.step()
    return not all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))


# --- the same, at no cost ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "how"),
    [(name, how) for name in COUPLED for how in ("loop", "foreach")]
    + [(name, "fused") for name in FUSED],
)
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("own", [0.0, 0.1])
def test_it_is_the_optimizers_own_decay(name: str, how: str, maximize: bool, own: float) -> None:
    model = network()
    ways = {"fused": True} if how == "fused" else {"foreach": how == "foreach"}
    settings = {"maximize": maximize, **ways}
    trained = {}
    for kind in ("handed", "by hand", "torch's"):
        twin = copy.deepcopy(model)
        decay = own + DECAY if kind == "torch's" else own
        optimizer = COUPLED[name](twin.parameters(), weight_decay=decay, **settings)
        if kind != "torch's":
            session = regplug.attach(twin, optimizer, [SPEC], handover=kind == "handed")
            assert ("itself" in session.describe()) == (kind == "handed")
        trained[kind] = train(twin, optimizer)
        if kind != "torch's":
            assert shows_it(twin, optimizer) == (kind == "by hand")
            assert optimizer.param_groups[0]["weight_decay"] == own
            assert type(optimizer.param_groups[0]["weight_decay"]) is float
    close(trained["handed"], trained["torch's"])
    close(trained["handed"], trained["by hand"], rtol=1e-9)


def test_decoupled_decay_is_another_thing() -> None:
    for make in (
        lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0),
        lambda p: torch.optim.Adam(p, lr=0.1, decoupled_weight_decay=True),
        lambda p: torch.optim.NAdam(p, lr=0.1, decoupled_weight_decay=True),
        lambda p: torch.optim.RAdam(p, lr=0.1, decoupled_weight_decay=True),
        lambda p: torch.optim.Rprop(p, lr=0.1),
        lambda p: torch.optim.Adafactor(p, lr=0.1),
    ):
        model = network()
        optimizer = make(model.parameters())
        session = regplug.attach(model, optimizer, [SPEC])
        assert "itself" not in session.describe()
        assert shows_it(model, optimizer)


class Another(torch.optim.SGD):
    """Whose update is nobody's business."""


def test_a_strangers_optimizer_is_left_alone() -> None:
    model = network()
    optimizer = Another(model.parameters(), lr=0.1)
    regplug.attach(model, optimizer, [SPEC])
    assert shows_it(model, optimizer)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam])
def test_under_a_scaler_with_an_overflow(make: Any, fused: bool) -> None:
    trained = []
    for handover in (True, False):
        model = network().float()
        optimizer = make(model.parameters(), lr=0.05, fused=fused)
        session = regplug.attach(model, optimizer, [SPEC], handover=handover)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        for step in range(6):
            optimizer.zero_grad()
            generator = torch.Generator().manual_seed(step)
            x = torch.randn(16, 4, generator=generator)
            loss = model(x).square().mean() * (float("inf") if step == 2 else 1)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        assert session.steps == 5
        assert ("itself" in session.describe()) == handover
        trained.append([p.detach() for p in model.parameters()])
        assert optimizer.param_groups[0]["weight_decay"] == 0
    close(*trained, rtol=1e-5)


def test_a_closure() -> None:
    trained, seen = [], []
    for handover in (True, False):
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        regplug.attach(model, optimizer, [SPEC], handover=handover)
        for step in range(3):

            def closure(
                step: int = step, model: nn.Module = model, optimizer: Any = optimizer
            ) -> torch.Tensor:
                optimizer.zero_grad()
                backward(model, step)
                return torch.tensor(1.0)

            seen.append(float(optimizer.step(closure)))
        trained.append([p.detach() for p in model.parameters()])
    close(*trained)
    assert seen[:3] == pytest.approx(seen[3:], rel=1e-12)
    assert seen[0] > 1  # with the value of the penalty


def test_a_schedule_reaches_each_update() -> None:
    trained = []
    for handover in (True, False):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        spec = "l2(linear(0.5, 0, steps=3), where='all', delivery='step')"
        regplug.attach(model, optimizer, [spec], handover=handover)
        trained.append(train(model, optimizer))
    close(*trained)


def test_group_by_group() -> None:
    model = network()
    weights = [p for p in model.parameters() if p.ndim == 2]
    biases = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.SGD([{"params": weights}, {"params": biases}], lr=0.05)
    session = regplug.attach(model, optimizer, ["l2(0.25, delivery='step')"])
    assert "the update of SGD itself" in session.describe()
    twin = network()
    groups = [{"params": [p for p in twin.parameters() if p.ndim == 2], "weight_decay": DECAY}]
    groups += [{"params": [p for p in twin.parameters() if p.ndim == 1]}]
    close(train(model, optimizer), train(twin, torch.optim.SGD(groups, lr=0.05)))
    assert not shows_it(model, optimizer)


def test_a_group_that_is_covered_in_part_has_it_in_its_gradients() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    session = regplug.attach(model, optimizer, ["l2(0.25, delivery='step')"])
    assert "itself" not in session.describe()
    assert shows_it(model, optimizer)


@pytest.mark.parametrize("off", [{"kernels": "foreach"}, {"handover": False}, {}])
def test_it_can_be_had_the_old_way(off: dict[str, Any], monkeypatch: Any) -> None:
    if not off:
        monkeypatch.setenv("REGPLUG_KERNELS", "foreach")
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    session = regplug.attach(model, optimizer, [SPEC], **off)
    assert "itself" not in session.describe()
    assert shows_it(model, optimizer)


def test_weight_decay_is_not_left_to_adamw_either_if_so_told() -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.0)
    spec = "weight_decay(0.5, where='all')"
    session = regplug.attach(model, optimizer, [spec], handover=False)
    assert "before_step" in session.describe()
    twin = network()
    found = train(model, optimizer)
    close(found, train(twin, torch.optim.AdamW(twin.parameters(), lr=0.05, weight_decay=0.5)))


def test_delivered_in_the_loss_or_by_its_proximal_operator_it_is_not_left_to_anyone() -> None:
    for delivery in ("loss", "proximal"):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        spec = f"l2(0.25, where='all', delivery={delivery!r})"
        session = regplug.attach(model, optimizer, [spec])
        for step in range(3):
            optimizer.zero_grad()
            session.loss(model(torch.ones(2, 4).double()).square().mean()).backward()
            before = [p.grad.clone() for p in model.parameters()]
            decays: list[float] = []
            handle = optimizer.register_step_pre_hook(
                lambda o, a, k, seen=decays: seen.append(o.param_groups[0]["weight_decay"])
            )
            optimizer.step()
            handle.remove()
            assert decays == [0], step
            assert all(
                torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True)
            )
        assert "itself" not in session.describe()


@pytest.mark.parametrize("fused", [True, False])
def test_half_precision_is_told_that_it_rounds_away_and_then_left_to_the_update(
    fused: bool,
) -> None:
    model = network().bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, fused=fused)
    regplug.attach(model, optimizer, ["l2(1e-6, where='all', delivery='step')"])
    backward(model, 0)
    if fused:  # which computes in float32
        optimizer.step()
    else:
        with pytest.warns(UserWarning, match="rounds away"):
            optimizer.step()
    assert not shows_it(model, optimizer)
