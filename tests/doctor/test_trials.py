"""Steps on trial leave the optimizer as it is, and what can't be tried on a copy is not claimed."""

import pytest
import torch
from torch import nn

from regplug import doctor


class Parts(torch.optim.Optimizer):
    """Several optimizers, of a part of the weights each, behind one step."""

    def __init__(self, optimizers, keep):
        super().__init__([{"params": g["params"]} for o in optimizers for g in o.param_groups], {})
        self.parts = keep(optimizers)

    def step(self, closure=None):
        parts = self.parts.values() if isinstance(self.parts, dict) else self.parts
        for part in parts:
            part.step()


class Fallback(torch.optim.Optimizer):
    """One that leaves vectors to another optimizer, as those for matrices do."""

    def __init__(self, params, lr, weight_decay):
        params = list(params)
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.vectors = torch.optim.AdamW([p for p in params if p.ndim < 2], lr=lr, weight_decay=0.0)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim > 1 and p.grad is not None:
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * p.grad)
        self.vectors.step()


class Bound(torch.optim.Optimizer):
    """One that chooses its update when it is made, and keeps the method."""

    def __init__(self, params, lr, weight_decay):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.steps = 0
        self.update = self._plain

    @torch.no_grad()
    def step(self, closure=None):
        self.update()

    def _plain(self):
        self.steps += 1
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * p.grad)


class ScheduleFree(torch.optim.Optimizer):
    """Descent on z, whose average x is what is meant, with gradients at y (Defazio, 2024)."""

    def __init__(self, params, lr, weight_decay):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "beta": 0.9, "k": 0})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            lr, beta = group["lr"], group["beta"]
            group["k"] += 1
            for y in group["params"]:
                if y.grad is None:
                    continue
                z = self.state[y].setdefault("z", y.clone())
                x = (y - (1 - beta) * z) / beta
                z.sub_(lr * (y.grad + group["weight_decay"] * y))
                x.lerp_(z, 1 / group["k"])
                y.copy_((1 - beta) * z + beta * x)


def two(model, keep):
    weights = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    adam = torch.optim.AdamW(weights, lr=0.1, weight_decay=0.3)
    return Parts([adam, torch.optim.SGD(vectors, lr=0.1, momentum=0.9)], keep)


HOLDING = {
    "in a list": lambda model: two(model, list),
    "in a dict": lambda model: two(model, lambda parts: dict(enumerate(parts))),
    "for vectors": lambda model: Fallback(model.parameters(), 0.1, 0.3),
}


def states(optimizer):
    parts = getattr(optimizer, "parts", None) or [optimizer, optimizer.vectors]
    parts = parts.values() if isinstance(parts, dict) else parts
    return [part.state_dict() for part in parts]


def trained(make, examined, steps=4):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    optimizer = make(model)
    report = doctor.examine(model, optimizer)
    with report if examined else torch.enable_grad():
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.randn(8, 5)).square().mean().backward()
            optimizer.step()
    return model, optimizer, report.report


@pytest.mark.parametrize("kind", HOLDING)
def test_optimizers_inside_an_optimizer_make_no_step_of_the_doctors(kind):
    (alone, theirs, _), (model, optimizer, report) = (
        trained(HOLDING[kind], examined) for examined in (False, True)
    )
    pairs = zip(alone.parameters(), model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert str(states(optimizer)) == str(states(theirs))
    assert report.steps == 4
    assert any("it holds other optimizers" in line for line in report.unseen)
    assert [group.decay for group in report.groups] == [None] * len(report.groups)
    assert [group.share for group in report.groups] == [None] * len(report.groups)


def test_a_method_that_is_kept_as_an_attribute_works_on_the_copy():
    (alone, *_), (model, optimizer, report) = (
        trained(lambda model: Bound(model.parameters(), 0.1, 0.3), examined)
        for examined in (False, True)
    )
    pairs = zip(alone.parameters(), model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert optimizer.steps == 4
    assert report.unseen == []
    (group,) = report.groups
    # Without momentum the two conventions are one.
    assert (group.decay.convention, group.decay.strength) == ("coupled", pytest.approx(0.3))


def test_decay_of_weights_that_are_kept_elsewhere_is_not_seen():
    (alone, *_), (model, _, report) = (
        trained(lambda model: ScheduleFree(model.parameters(), 0.1, 0.3), examined)
        for examined in (False, True)
    )
    pairs = zip(alone.parameters(), model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert [group.decay for group in report.groups] == [None]
    assert any("weights that it keeps itself" in line for line in report.unseen)


class Strange(torch.optim.SGD):
    """One that moves weights with no gradient, in another way than decay."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(0.01 * p.sign() + group["lr"] * p.grad)


@pytest.mark.parametrize(
    "make",
    [
        *HOLDING.values(),
        lambda model: Strange(model.parameters(), lr=0.1),
        lambda model: ScheduleFree(model.parameters(), 0.1, 0.3),
    ],
    ids=[*HOLDING, "strange", "schedule-free"],
)
def test_where_decay_could_not_be_measured_nothing_acts_is_not_claimed(make):
    *_, report = trained(make, True)
    assert report.unseen
    assert report.findings == []


def test_a_copy_of_an_optimizer_shares_no_list_with_it():
    class Keeping(torch.optim.SGD):
        def __init__(self, params):
            super().__init__(params, lr=0.1, weight_decay=0.1)
            self.seen = {"norms": [], "last": torch.zeros(2)}

        def step(self, closure=None):
            self.seen["norms"].append(1)
            self.seen["last"] += 1
            return super().step(closure)

    _, optimizer, report = trained(lambda model: Keeping(model.parameters()), True)
    assert optimizer.seen["norms"] == [1] * 4
    assert torch.equal(optimizer.seen["last"], torch.full((2,), 4.0))
    assert report.groups[0].decay.strength == pytest.approx(0.1)
