"""In which order events fire: in a step, with closures, among plugins."""

import torch

import regplug
from regplug import Plugin, hookimpl
from tests.session.watching import CLOSURE_ORDER, ORDER, Watch, backward, lines, watched


class Descent(torch.optim.Optimizer):
    """w ← w − 0.1·gradient, evaluating a closure ``times`` times first; writes down its update."""

    def __init__(self, parameters, log, times=1):
        super().__init__(parameters, {"lr": 0.1})
        self.log, self.times = log, times

    def step(self, closure=None):
        loss = None
        for _ in range(self.times if closure else 0):
            with torch.enable_grad():
                loss = closure()
        self.log.append("  update")
        with torch.no_grad():
            for group in self.param_groups:
                for w in group["params"]:
                    if w.grad is not None:
                        w.sub_(group["lr"] * w.grad)
        return loss


def test_every_hook_fires_in_this_order(model, log):
    optimizer = Descent(model.parameters(), log)
    session = regplug.attach(model, optimizer, [Watch("a", log), Watch("b", log)])
    for _ in range(2):  # two micro-batches of one step
        session.loss(model(torch.ones(1, 3)).sum()).backward()
    optimizer.step()
    backward(model)
    optimizer.step()
    session.note(val_loss=0.5)
    session.metrics()
    session.load_state_dict(session.state_dict())
    session.detach()
    optimizer.step()
    assert log == lines(ORDER)


def test_every_evaluation_of_a_closure_fires_in_this_order(model, log):
    """A step hook fires before the closure, whose zero_grad would wipe what was added."""
    optimizer = Descent(model.parameters(), log, times=2)

    def closure():
        optimizer.zero_grad()
        log.append("  closure")
        loss = model(torch.ones(1, 3)).sum()
        loss.backward()
        return loss

    with regplug.attach(model, optimizer, [Watch("a", log), Watch("b", log)]):
        optimizer.step(closure)
    optimizer.step(closure=closure)
    assert log == lines(CLOSURE_ORDER)


def test_closure_given_by_keyword_fires_as_well(model, log):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watched(model, optimizer, log)
    optimizer.step(closure=lambda: backward(model))
    assert log == ["0 a on_gradients", "0 a on_closure", "0 a before_step", "0 a after_step"]


def test_line_search_of_lbfgs_is_one_step(model, log):
    """LBFGS calls the closure many times within one step."""
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3, line_search_fn="strong_wolfe")
    watched(model, optimizer, log)
    evaluations = 0

    def closure():
        nonlocal evaluations
        evaluations += 1
        optimizer.zero_grad()
        loss = (model(torch.ones(1, 3)) - 1).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert evaluations > 2
    each = ["0 a on_gradients", "0 a on_closure"]
    assert log == [*each, "0 a before_step", *each * (evaluations - 1), "0 a after_step"]


def test_plugins_act_in_the_order_of_the_list(model, log):
    """pluggy calls the last registered first; the order here is that of the user's list."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    names = ["z", "a", "m"]
    regplug.attach(model, optimizer, [Watch(name, log) for name in names])
    backward(model)
    log.clear()
    optimizer.step()
    assert [line.split()[1] for line in log] == names * 3


def test_plugins_may_wrap_the_hooks_of_others(model, log):
    """pluggy's wrappers, which a direct call of the functions would leave out."""

    class Around(Plugin):
        changes_weights = False

        @hookimpl(wrapper=True)
        def on_gradients(self, session):
            log.append("before the others")
            result = yield
            log.append("after the others")
            return result

    class Inside(Plugin):
        @hookimpl
        def on_gradients(self, session):
            log.append("inside")

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with regplug.attach(model, optimizer, [Around(), Inside()]):
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    assert log == ["before the others", "inside", "after the others"]
