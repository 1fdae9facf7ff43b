"""Closures: LBFGS and others see the value that is minimized."""

import pytest
import torch

import regplug
from regplug import hookimpl
from regplug.errors import UnsupportedError
from tests.delivery.written_out import LR, Net, data, objective, spec, value, weights_of
from tests.helpers.compare import close


def minimize(net, optimizer, loss_of, steps):
    values = []
    for _ in range(steps):

        def closure():
            optimizer.zero_grad()
            loss = loss_of()
            loss.backward()
            return loss

        values.append(optimizer.step(closure).item())
    return values


@pytest.mark.parametrize("delivery", ["step", "loss", "auto"])
@pytest.mark.parametrize("line_search", ["strong_wolfe", None])
def test_lbfgs_takes_the_very_steps_it_takes_on_the_written_out_objective(delivery, line_search):
    """LBFGS calls the closure many times and line-searches on the value that it returns."""
    model, written = Net(), Net()
    settings = {"lr": 0.5, "max_iter": 8, "line_search_fn": line_search}
    ours = torch.optim.LBFGS(model.parameters(), **settings)
    theirs = torch.optim.LBFGS(written.parameters(), **settings)
    session = regplug.attach(model, ours, [spec("elastic_net", delivery)])
    in_loss = delivery == "loss"
    seen = minimize(
        model,
        ours,
        lambda: (session.loss if in_loss else lambda loss: loss)(objective(model, *data())),
        steps=4,
    )
    expected = minimize(
        written,
        theirs,
        lambda: objective(written, *data()) + sum(value(w, 0.3, 0.2) for w in weights_of(written)),
        steps=4,
    )
    assert seen == pytest.approx(expected, rel=1e-12)
    for mine, its in zip(model.parameters(), written.parameters(), strict=True):
        close(mine.detach(), its.detach(), atol=1e-10)


@pytest.mark.parametrize("delivery", ["step", "loss"])
def test_closure_of_other_optimizers_returns_the_penalized_value(delivery):
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    session = regplug.attach(model, optimizer, [spec("elastic_net", delivery), "weight_decay(0.5)"])
    terms = sum(value(w.detach(), 0.3, 0.2) for w in weights_of(model))
    plain = objective(model, *data()).detach()

    def loss():
        return (session.loss if delivery == "loss" else lambda x: x)(objective(model, *data()))

    (seen,) = minimize(model, optimizer, loss, steps=1)
    # Of the weights before they are decayed: those at which the gradient was taken.
    assert seen == pytest.approx((plain + terms).item(), rel=1e-12)


@pytest.mark.parametrize("returned", [None, 1.5, 2])
def test_closure_may_return_what_is_no_tensor(returned):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    session = regplug.attach(model, optimizer, ["l1(0.3)"])
    terms = sum(value(w.detach(), 0.3, 0.0) for w in weights_of(model)).item()

    def closure():
        objective(model, *data()).backward()
        return returned

    seen = optimizer.step(closure)
    assert seen == (None if returned is None else pytest.approx(returned + terms))
    assert session.steps == 1


def test_adam_with_a_closure_and_weight_decay_is_adamw_with_a_closure():
    model, written = Net(), Net()
    ours = torch.optim.Adam(model.parameters(), lr=LR)
    theirs = torch.optim.AdamW(written.parameters(), lr=LR, weight_decay=0.3)
    regplug.attach(model, ours, ["weight_decay(0.3, where='all')"])
    minimize(model, ours, lambda: objective(model, *data()), steps=6)
    minimize(written, theirs, lambda: objective(written, *data()), steps=6)
    for mine, its in zip(model.parameters(), written.parameters(), strict=True):
        assert torch.equal(mine, its)


@pytest.mark.parametrize("spec", ["weight_decay(0.1)", "l1(0.1, delivery='proximal')"])
def test_lbfgs_refuses_what_changes_weights_behind_its_back(spec):
    model = Net()
    optimizer = torch.optim.LBFGS(model.parameters())
    with pytest.raises(UnsupportedError, match=r"changes weights .*LBFGS, whose line search"):
        regplug.attach(model, optimizer, [spec])


def test_lbfgs_takes_a_plugin_that_only_watches():
    class Watch(regplug.Plugin):
        changes_weights = False
        seen = 0

        @hookimpl
        def after_step(self, session):
            self.seen += 1

    model = Net()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)
    watch = Watch()
    regplug.attach(model, optimizer, [watch])
    minimize(model, optimizer, lambda: objective(model, *data()), steps=2)
    assert watch.seen == 2
