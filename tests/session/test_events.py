"""When each event fires, in what order, and which steps are real ones."""

import copy

import pytest
import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

import regplug
from regplug import Plugin, hookimpl
from regplug.errors import PluginError, SpecError
from regplug_builtins import L1, L2


class Watch(regplug.Plugin):
    """Declares every hook there is, and writes down when each is called."""

    changes_weights = False

    def __init__(self, name, log):
        self.name = name
        self.log = log

    def note(self, event, session):
        self.log.append(f"{session.steps} {self.name} {event}")

    @hookimpl
    def on_attach(self, session):
        self.note("on_attach", session)

    @hookimpl
    def on_detach(self, session):
        self.note("on_detach", session)

    @hookimpl
    def on_loss(self, session, loss):
        self.note("on_loss", session)

    @hookimpl
    def on_gradients(self, session):
        self.note("on_gradients", session)

    @hookimpl
    def on_closure(self, session):
        self.note("on_closure", session)

    @hookimpl
    def before_step(self, session):
        self.note("before_step", session)

    @hookimpl
    def after_step(self, session):
        self.note("after_step", session)

    @hookimpl
    def on_metrics(self, session):
        self.note("on_metrics", session)

    @hookimpl
    def on_state(self, session):
        self.note("on_state", session)

    @hookimpl
    def on_load_state(self, session, state):
        self.note("on_load_state", session)


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


ORDER = """
0 a on_attach
0 b on_attach
0 a on_loss
0 b on_loss
0 a on_loss
0 b on_loss
0 a on_gradients
0 b on_gradients
0 a before_step
0 b before_step
  update
0 a after_step
0 b after_step
1 a on_gradients
1 b on_gradients
1 a before_step
1 b before_step
  update
1 a after_step
1 b after_step
2 a on_metrics
2 b on_metrics
2 a on_state
2 b on_state
2 a on_load_state
2 b on_load_state
2 b on_detach
2 a on_detach
  update
"""

CLOSURE_ORDER = """
0 a on_attach
0 b on_attach
  closure
0 a on_gradients
0 b on_gradients
0 a on_closure
0 b on_closure
0 a before_step
0 b before_step
  closure
0 a on_gradients
0 b on_gradients
0 a on_closure
0 b on_closure
  update
0 a after_step
0 b after_step
1 b on_detach
1 a on_detach
  closure
  closure
  update
"""


def lines(text):
    return text.strip("\n").splitlines()


def backward(model):
    model(torch.ones(1, 3)).sum().backward()


@pytest.fixture
def log():
    return []


@pytest.fixture
def model():
    return torch.nn.Linear(3, 2)


def watched(model, optimizer, log):
    """Attach one watch, and forget that it was attached."""
    session = regplug.attach(model, optimizer, [Watch("a", log)])
    log.clear()
    return session


ONE_STEP = ["0 a on_gradients", "0 a before_step", "0 a after_step"]


# The whole order


def test_every_hook_fires_in_this_order(model, log):
    optimizer = Descent(model.parameters(), log)
    session = regplug.attach(model, optimizer, [Watch("a", log), Watch("b", log)])
    for _ in range(2):  # two micro-batches of one step
        session.loss(model(torch.ones(1, 3)).sum()).backward()
    optimizer.step()
    backward(model)
    optimizer.step()
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


# One real step, one firing


class Subclass(torch.optim.SGD):
    """Its step does something and then calls its parent's, as many a paper's code does."""

    def step(self, closure=None):
        for group in self.param_groups:
            group["seen"] = group.get("seen", 0) + 1
        return super().step(closure)


class Grandchild(Subclass):
    def step(self, closure=None):
        return super().step(closure)


@pytest.mark.parametrize("kind", [Subclass, Grandchild])
@pytest.mark.parametrize("with_closure", [False, True])
def test_step_that_calls_its_parents_fires_once(model, log, kind, with_closure):
    """A subclass whose step calls super().step() fires the hooks of each class on the way.

    It does so once any instance of the base class exists.
    """
    for base in kind.__mro__[1:-2]:
        if base is not torch.optim.Optimizer:
            base(model.parameters(), lr=0.1)
    optimizer = kind(model.parameters(), lr=0.1)
    session = watched(model, optimizer, log)
    for step in range(3):
        if with_closure:
            optimizer.step(lambda: backward(model))
        else:
            backward(model)
            optimizer.step()
        assert session.steps == step + 1
    assert sum("after_step" in line for line in log) == 3
    assert sum("before_step" in line for line in log) == 3
    assert sum("on_gradients" in line for line in log) == 3


def test_step_that_raised_may_be_repeated(model, log):
    class Flaky(Subclass):
        broken = True

        def step(self, closure=None):
            if self.broken:
                raise OSError("the disk is full")
            return super().step(closure)

    torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = Flaky(model.parameters(), lr=0.1)
    session = watched(model, optimizer, log)
    backward(model)
    for _ in range(2):
        with pytest.raises(OSError, match="disk"):
            optimizer.step()
    optimizer.broken = False
    assert session.steps == 0
    log.clear()
    optimizer.step()
    assert log == ONE_STEP
    optimizer.step()
    assert session.steps == 2


def test_step_whose_closure_raised_may_be_repeated(model, log):
    optimizer = Subclass(model.parameters(), lr=0.1)
    session = watched(model, optimizer, log)
    with pytest.raises(ZeroDivisionError):
        optimizer.step(lambda: 1 / 0)
    assert (log, session.steps) == ([], 0)
    optimizer.step(lambda: backward(model))
    backward(model)
    optimizer.step()
    assert session.steps == 2


def test_step_in_which_a_plugin_raised_may_be_repeated(model, log):
    class Touchy(regplug.Plugin):
        patience = 0

        @hookimpl
        def before_step(self, session):
            self.patience += 1
            if self.patience == 1:
                raise ArithmeticError("not now")

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = regplug.attach(model, optimizer, [Touchy(), Watch("a", log)])
    backward(model)
    before = model.weight.detach().clone()
    with pytest.raises(PluginError, match="not now"):
        optimizer.step()
    assert session.steps == 0
    assert torch.equal(model.weight, before)
    log.clear()
    optimizer.step()
    assert log == ONE_STEP
    assert session.steps == 1


def test_learning_rate_scheduler_around_the_step_changes_nothing(model, log):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    watched(model, optimizer, log)
    backward(model)
    optimizer.step()
    scheduler.step()
    assert log == ONE_STEP


# Steps that are none


def test_step_without_any_gradient_is_none(model, log):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = watched(model, optimizer, log)
    optimizer.step()
    optimizer.step(lambda: None)
    assert (log, session.steps) == ([], 0)


def test_step_that_makes_optimizer_state_for_a_checkpoint_is_none(model, log):
    """get_optimizer_state_dict calls step() with lr 0 and zero gradients to make state.

    A proximal plugin that took it for a step would change the weights inside a checkpoint call.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    session = regplug.attach(
        model, optimizer, ["l1(10.0, delivery='proximal', where='all')", Watch("a", log)]
    )
    log.clear()
    before = copy.deepcopy(model.state_dict())
    saved = get_optimizer_state_dict(model, optimizer)
    assert saved["state"], "torch made no state, so this test shows nothing"
    assert (log, session.steps) == ([], 0)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    backward(model)
    optimizer.step()
    assert log == ONE_STEP


def test_first_step_of_a_warm_up_is_real(model, log):
    """It has lr 0 too, but real gradients."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    session = watched(model, optimizer, log)
    backward(model)
    optimizer.step()
    assert log == ONE_STEP
    assert session.steps == 1


def test_zero_gradients_at_a_learning_rate_are_a_real_step(model, log):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watched(model, optimizer, log)
    for w in model.parameters():
        w.grad = torch.zeros_like(w)
    optimizer.step()
    assert log == ONE_STEP


# What holds inside an event


def test_gradient_mode_is_off_in_step_events_and_the_loops_own_in_the_loss_event(model):
    seen = []

    class Modes(regplug.Plugin):
        changes_weights = False

        @hookimpl
        def on_loss(self):
            seen.append(("on_loss", torch.is_grad_enabled()))

        @hookimpl
        def on_gradients(self):
            seen.append(("on_gradients", torch.is_grad_enabled()))

        @hookimpl
        def before_step(self):
            seen.append(("before_step", torch.is_grad_enabled()))

        @hookimpl
        def after_step(self):
            seen.append(("after_step", torch.is_grad_enabled()))

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = regplug.attach(model, optimizer, [Modes()])
    session.loss(model(torch.ones(1, 3)).sum()).backward()
    optimizer.step()
    with torch.no_grad():
        session.loss(torch.tensor(0.0))
    assert torch.is_grad_enabled()
    assert seen == [
        ("on_loss", True),
        ("on_gradients", False),
        ("before_step", False),
        ("after_step", False),
        ("on_loss", False),
    ]


def test_closure_runs_with_the_gradient_mode_that_the_optimizer_chose(model):
    modes = []
    for optimizer in (
        torch.optim.LBFGS(model.parameters(), max_iter=1),
        torch.optim.Adam(model.parameters()),
    ):
        regplug.attach(model, optimizer, ["l2(0.1)"])

        def closure():
            modes.append(torch.is_grad_enabled())
            loss = model(torch.ones(1, 3)).square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
    assert modes
    assert all(modes)


def test_gradients_are_seen_after_clipping(model):
    seen = []

    class Norm(regplug.Plugin):
        @hookimpl
        def on_gradients(self, session):
            grads = [w.grad for w in session.model.parameters()]
            seen.append(torch.nn.utils.get_total_norm(grads).item())

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regplug.attach(model, optimizer, [Norm()])
    (1000 * model(torch.ones(1, 3))).sum().backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    assert seen == [pytest.approx(1.0, abs=1e-5)]


def test_plugins_act_in_the_order_of_the_list(model, log):
    """pluggy calls the last registered first; the order here is that of the user's list."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    names = ["z", "a", "m"]
    regplug.attach(model, optimizer, [Watch(name, log) for name in names])
    backward(model)
    log.clear()
    optimizer.step()
    assert [line.split()[1] for line in log] == names * 3


# The contract is checked when a plugin is attached


def test_hook_that_asks_for_an_unknown_argument_is_refused(model):
    class Asks(regplug.Plugin):
        @hookimpl
        def on_gradients(self, session, weather):
            raise AssertionError

    with pytest.raises(PluginError, match=r"asks .*breaks the hook contract(.|\n)*weather"):
        regplug.attach(model, plugins=[Asks()])


def test_hook_without_the_marker_is_refused(model):
    class Forgets(regplug.Plugin):
        def after_step(self, session):
            raise AssertionError

    with pytest.raises(PluginError, match=r"forgets .*after_step .*@regplug.hookimpl"):
        regplug.attach(model, plugins=[Forgets()])


def test_hook_that_does_not_exist_is_refused(model):
    class Invents(regplug.Plugin):
        @hookimpl
        def on_tuesday(self, session):
            raise AssertionError

    with pytest.raises(PluginError, match=r"invents .*breaks the hook contract(.|\n)*on_tuesday"):
        regplug.attach(model, plugins=[Invents()])


def test_hooks_of_a_penalty_that_are_written_anew_are_called_whatever_its_delivery(model):
    """A penalty is not called for deliveries that are not its own; what others add to it is."""
    seen = []

    class Watched(L1):
        @hookimpl
        def after_step(self, session):
            seen.append("of the class")
            super().after_step(session)

    own = L2(0.1, delivery="step")
    own.after_step = hookimpl(lambda session: seen.append("of the instance"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with regplug.attach(model, optimizer, [Watched(0.1), own]):
        for _ in range(2):
            model(torch.ones(1, 3)).sum().backward()
            optimizer.step()
    assert seen == ["of the class", "of the instance"] * 2


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


def test_delivery_of_an_attached_penalty_does_not_change(model):
    """Which events it is called in is settled; the next attach is free to settle anew."""
    penalty = L1(0.1, delivery="step")
    session = regplug.attach(model, plugins=[penalty])
    with pytest.raises(SpecError, match="l1 is attached"):
        penalty.delivery = "proximal"
    session.detach()
    penalty.delivery = "proximal"
    assert penalty.delivery == "proximal"
