"""Label smoothing by schedule: the criterion is found where it is, set, compiled once, restored."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.utils import counters

import regplug
from regplug.schedules import linear
from regplug_builtins import LabelSmoothing
from tests.helpers.criterions import hide_those_left


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    hide_those_left(monkeypatch)


def trained(model: nn.Module, criterion: Any, plugins: Any, steps: int) -> list[float]:
    """Return the loss of each step of the loop of everybody."""
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    with regplug.attach(model, optimizer, plugins):
        for _ in range(steps):
            x, y = torch.randn(6, 4), torch.randint(0, 3, (6,))
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


def by_hand(model: nn.Module, smoothing: Any, steps: int) -> list[float]:
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for step in range(steps):
        x, y = torch.randn(6, 4), torch.randint(0, 3, (6,))
        optimizer.zero_grad()
        target = torch.full((6, 3), smoothing(step) / 3)
        target[torch.arange(6), y] += 1 - smoothing(step)
        loss = -(target * model(x).log_softmax(1)).sum(1).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("schedule", ["linear(0.3, 0, steps=4)", "0.2"])
@pytest.mark.parametrize("how", ["found", "given", "in the model"])
def test_the_loss_is_that_of_smoothed_targets(how: str, schedule: str) -> None:
    model = nn.Linear(4, 3)
    other = copy.deepcopy(model)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.07)
    smoothing: Any = linear(0.3, 0, steps=4) if "linear" in schedule else 0.2
    plugin: Any = f"label_smoothing({schedule})"
    if how == "given":
        plugin = LabelSmoothing(smoothing, criterion=criterion)
        unrelated = nn.CrossEntropyLoss()
    if how == "in the model":
        unrelated = nn.CrossEntropyLoss()
        model.criterion = criterion
    losses = trained(model, criterion, [plugin], 6)
    at = smoothing if callable(smoothing) else lambda step: smoothing
    assert losses == pytest.approx(by_hand(other, at, 6), rel=1e-6)
    assert type(criterion.label_smoothing) is float
    assert criterion.label_smoothing == 0.07
    if how != "found":
        assert unrelated.label_smoothing == 0.0


def test_evaluation_in_between_and_metrics_tell_what_holds() -> None:
    model, criterion = nn.Linear(4, 3), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = regplug.attach(model, optimizer, ["label_smoothing(linear(0.4, 0, steps=4))"])
    for step in range(3):
        assert session.metrics()["label_smoothing/smoothing"] == pytest.approx(0.4 - 0.1 * step)
        assert float(criterion.label_smoothing) == pytest.approx(0.4 - 0.1 * step)
        criterion(model(torch.ones(2, 4)), torch.tensor([0, 1])).backward()
        optimizer.step()
    assert "CrossEntropyLoss.label_smoothing (own 0)" in session.describe()
    session.detach()
    assert criterion.label_smoothing == 0.0


def test_criterions_that_are_not_told_apart_or_not_there_are_refused() -> None:
    model = nn.Linear(4, 3)
    with pytest.raises(regplug.errors.SelectionError, match="make the criterion before attach"):
        regplug.attach(model, plugins=["label_smoothing(0.1)"])
    criterions = [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1)]
    with pytest.raises(regplug.errors.SelectionError, match=r"2 criterions .* criterion=criterion"):
        regplug.attach(model, plugins=["label_smoothing(0.1)"])
    assert [c.label_smoothing for c in criterions] == [0.0, 0.1]
    for wrong in (nn.MSELoss(), 3, nn.CrossEntropyLoss):
        with pytest.raises(regplug.errors.SpecError, match="criterion must be a module"):
            LabelSmoothing(0.1, criterion=wrong)  # type: ignore[arg-type]
    with pytest.raises(regplug.errors.SpecError, match="within"):
        LabelSmoothing(1.5)
    twice = [LabelSmoothing(0.1, criterion=criterions[0], name=name) for name in "ab"]
    with pytest.raises(regplug.errors.SpecError, match="set by another plugin already"):
        regplug.attach(model, plugins=twice)


def test_a_criterion_of_ones_own_is_found_by_its_attribute() -> None:
    class Mine(nn.Module):
        label_smoothing = 0.0  # of the class, as some are

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return F.cross_entropy(x, y, label_smoothing=self.label_smoothing)

    model, criterion = nn.Linear(4, 3), Mine()
    other = copy.deepcopy(model)
    losses = trained(model, criterion, ["label_smoothing(linear(0.3, 0, steps=4))"], 4)
    assert losses == pytest.approx(by_hand(other, linear(0.3, 0, steps=4), 4), rel=1e-6)
    assert criterion.label_smoothing == 0.0


CASES: dict[str, tuple[dict[str, Any], Any]] = {
    "plain": ({}, torch.tensor([0, 1, 2, 1])),
    "weighted": ({"weight": torch.tensor([1.0, 2.0, 0.5])}, torch.tensor([0, 1, 2, 1])),
    "ignored": ({"ignore_index": 1}, torch.tensor([0, 1, 2, 1])),
    "sum": ({"reduction": "sum"}, torch.tensor([0, 1, 2, 1])),
    "none": ({"reduction": "none"}, torch.tensor([0, 1, 2, 1])),
    "probabilities": ({}, torch.tensor([[0.2, 0.3, 0.5]] * 4)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_compiled_criterion_is_compiled_once_for_all_values(
    case: str, fresh_compiler: None
) -> None:
    options, target = CASES[case]
    model, criterion = nn.Linear(4, 3), nn.CrossEntropyLoss(**options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    step_by = linear(1.0, 0.0, steps=10)  # both ends are among them

    def loss(x: torch.Tensor) -> torch.Tensor:
        return criterion(model(x), target).mean()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    plugin = LabelSmoothing(step_by, criterion=criterion)
    x = torch.randn(4, 4)
    with regplug.attach(model, optimizer, [plugin]) as session:
        for step in range(12):
            optimizer.zero_grad()
            found = compiled(x)
            found.backward()
            wanted = F.cross_entropy(
                model(x), target, **options, label_smoothing=step_by(step)
            ).mean()
            torch.testing.assert_close(found, wanted)
            (gradient,) = torch.autograd.grad(wanted, model.weight)
            torch.testing.assert_close(model.weight.grad, gradient)
            optimizer.step()
        assert session.steps == 12
    assert counters["stats"]["unique_graphs"] == 1


def test_a_class_that_is_impossible_does_no_harm_without_smoothing(fresh_compiler: None) -> None:
    criterion, model = nn.CrossEntropyLoss(), nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plugin = LabelSmoothing(linear(0.5, 0, steps=1), criterion=criterion)
    with regplug.attach(model, optimizer, [plugin]):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()  # from here on it is 0
        logits = torch.tensor([[1.0, 2.0, -torch.inf]], requires_grad=True)
        compiled = torch.compile(lambda x: criterion(x, torch.tensor([1])), backend="aot_eager")
        loss = compiled(logits)
        loss.backward()
    torch.testing.assert_close(loss, F.cross_entropy(logits, torch.tensor([1])))
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_a_copy_of_the_criterion_has_a_float() -> None:
    model, criterion = nn.Linear(4, 3), nn.CrossEntropyLoss()
    with regplug.attach(model, plugins=[LabelSmoothing(linear(0.3, 0, 4), criterion=criterion)]):
        assert type(copy.deepcopy(criterion).label_smoothing) is float


@pytest.mark.parametrize("start", [0.2, linear(0.2, 0.1, steps=5)])
def test_a_smoothing_that_is_set_anew_reaches_the_criterion_at_once(start: Any) -> None:
    model, criterion = nn.Linear(4, 3), nn.CrossEntropyLoss()
    plugin = LabelSmoothing(start, criterion=criterion)
    with regplug.attach(model, plugins=[plugin]) as session:
        plugin.smoothing = 0.4
        assert float(criterion.label_smoothing) == 0.4
        assert session.metrics()["label_smoothing/smoothing"] == 0.4
        if start == 0.2:
            with pytest.raises(regplug.errors.SpecError, match="detach"):
                plugin.smoothing = linear(0.2, 0.1, steps=5)
            assert criterion.label_smoothing == 0.4
    assert criterion.label_smoothing == 0.0


def test_criterions_of_a_model_have_smoothings_by_pattern() -> None:
    model = nn.ModuleDict(
        {"net": nn.Linear(4, 3), "first": nn.CrossEntropyLoss(), "second": nn.CrossEntropyLoss()}
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    spec = "label_smoothing({'first': linear(0.4, 0, steps=4), '*': 0.1})"
    with regplug.attach(model, optimizer, [spec]) as session:
        model["net"](torch.ones(1, 4)).sum().backward()
        optimizer.step()
        found = [float(model[name].label_smoothing) for name in ("first", "second")]
        assert found == pytest.approx([0.3, 0.1])
        told = session.metrics()
        assert told["label_smoothing/smoothing/first"] == pytest.approx(0.3)
        assert told["label_smoothing/smoothing/*"] == 0.1
        assert "by pattern: smoothing/first 0.3, smoothing/* 0.1" in session.describe()
