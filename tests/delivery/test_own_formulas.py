"""Penalties of others: formulas that are not separable, without an operator, or wrong."""

import pytest
import torch
from torch import nn

import regplug
from regplug.errors import PluginError, SpecError
from tests.delivery.written_out import LR, Net, data, objective
from tests.helpers.compare import close


@pytest.mark.parametrize("delivery", ["step", "loss"])
@pytest.mark.parametrize("separable", [True, False])
@pytest.mark.parametrize("size", [2, 200, 1100])
def test_gradient_of_another_shape_is_an_error_naming_the_plugin(delivery, separable, size):
    """Autograd's own words name no plugin, and a broadcast would pass unseen."""

    class Odd(regplug.Penalty):
        def value(self, w):
            return w.sum()

        def gradient(self, w):
            return torch.ones(())

    Odd.separable = separable
    model = Net()
    model.big = nn.Parameter(torch.zeros(size, size))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with regplug.attach(model, optimizer, [Odd(0.5, where="big", delivery=delivery)]) as session:

        def step():
            session.loss(objective(model, *data()) + model.big.sum()).backward()
            optimizer.step()

        with pytest.raises(
            PluginError, match=r"^odd \([\w.]+\) failed in .* must be shaped like w"
        ):
            step()


class GroupNorm(regplug.Penalty):
    """Σ over rows of ‖w_i‖, which is not separable."""

    def value(self, w):
        return w.norm(dim=1).sum()


@pytest.mark.parametrize("delivery", ["step", "loss"])
def test_formula_that_is_not_separable_and_has_no_gradient_of_its_own(delivery):
    model = nn.Linear(3, 4).double()
    before = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    session = regplug.attach(model, optimizer, [GroupNorm(0.3, delivery=delivery)])
    total = session.loss((0 * model(torch.ones(1, 3).double())).sum())
    if delivery == "loss":
        close(total.detach(), 0.3 * before.norm(dim=1).sum())
    total.backward()
    optimizer.step()
    close(model.weight.detach(), before - LR * 0.3 * before / before.norm(dim=1, keepdim=True))
    metric = 0.3 * model.weight.norm(dim=1).sum().item()
    assert session.metrics()["group_norm/value"] == pytest.approx(metric)


def test_penalty_without_a_proximal_operator_says_so():
    with pytest.raises(SpecError, match="delivery='proximal': GroupNorm has no proximal operator"):
        GroupNorm(0.1, delivery="proximal")


@pytest.mark.parametrize("delivery", ["step", "loss"])
def test_value_that_is_no_scalar_is_an_error_naming_the_plugin(delivery):
    class Rows(regplug.Penalty):
        def value(self, w):
            return w.norm(dim=1)

    model = nn.Linear(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    session = regplug.attach(model, optimizer, [Rows(0.3, delivery=delivery)])

    def step():
        session.loss(model(torch.ones(1, 3)).sum()).backward()
        optimizer.step()

    source = "tests.delivery.test_own_formulas"
    message = rf"rows \({source}\) failed in on_(loss|gradients) at step 0: .*(0-d|scalar)"
    with pytest.raises(PluginError, match=message):
        step()
