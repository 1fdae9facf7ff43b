"""Ctrl-C at any place: a second detach() restores everything, and a step leaves grad mode alone."""

import sys

import pytest
import torch
from torch import nn

import regplug
from regplug import hookimpl
from regplug.schedules import linear
from regplug_builtins import (
    L1,
    L2SP,
    Activity,
    Dropout,
    DropPath,
    GradientNoise,
    GroupLasso,
    MaxNorm,
    WeightDecay,
)
from tests.helpers.accelerating import forget_accelerate
from tests.helpers.layers import StochasticDepth


def network():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(3, 4),
        nn.ReLU(),
        nn.Dropout(0.3),
        StochasticDepth(),
        nn.LSTM(4, 2, 2, dropout=0.1),
    )


def forward(model, x=None):
    return model(torch.ones(5, 3) if x is None else x)[0].square().mean()


KINDS = {
    "penalty": lambda: L1(linear(0.1, 0.2, steps=5)),
    "proximal": lambda: GroupLasso(0.1, delivery="proximal", where="0.weight"),
    "l2_sp": lambda: L2SP(0.1),
    "decay": lambda: WeightDecay(0.1, existing="replace"),
    "dropout": lambda: Dropout(linear(0.5, 0.1, steps=5)),
    "drop_path": lambda: DropPath(0.5),
    "activity": lambda: Activity(0.1),
    "constraint": lambda: MaxNorm(0.5),
    "noise": lambda: GradientNoise(0.1),
}


def optimizer_of(kind, model):
    if kind == "proximal":
        return torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.03)
    return torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.03)


def state_of(model, optimizer):
    """Return all that a session may have changed, but for weights and optimizer state."""
    found = {
        "groups": [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    }
    for name, hooks in vars(optimizer).items():
        if name.endswith("_hooks"):
            found[name] = len(hooks)
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, float):
                found[f"{path}.{name}"] = type(value), value
            if name.endswith("_hooks"):
                found[f"{path}.{name}"] = len(value)
    return found


def _is_ours(frame):
    """Whether a frame is of a call that regplug makes, or was called for."""
    while frame is not None:
        if "regplug" in frame.f_globals.get("__name__", "").partition(".")[0]:
            return True
        frame = frame.f_back
    return False


class Interrupter:
    """Raises KeyboardInterrupt at the n-th line, or opcode, of what regplug does in a call."""

    def __init__(self, at, opcodes=False):
        self.left, self.opcodes, self.fired = at, opcodes, False

    def __call__(self, frame, event, argument):
        if event == "call" and not _is_ours(frame):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = self.opcodes, not self.opcodes
        if event in ("line", "opcode"):
            self.left -= 1
            if self.left == 0:
                self.fired = True
                sys.settrace(None)
                raise KeyboardInterrupt
        return self

    def call(self, function, *arguments):
        """Return whether it was interrupted."""
        before = sys.gettrace()
        sys.settrace(self)
        try:
            function(*arguments)
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(before)
        assert not self.fired, "somebody swallowed Ctrl-C"
        return False


def every_place(opcodes, most):
    """Yield interrupters for the first, second, … place: until one is never reached."""
    for at in range(1, most):
        interrupter = Interrupter(at, opcodes)
        yield interrupter
        if not interrupter.fired:
            return
    raise AssertionError(f"more than {most} places")


@pytest.mark.parametrize("kind", KINDS)
def test_detaching_again_after_ctrl_c_restores_everything(kind):
    plugin = KINDS[kind]()
    model = network()
    optimizer = optimizer_of(kind, model)
    untouched = state_of(model, optimizer)
    places = 0
    for interrupter in every_place(opcodes=False, most=2000):
        session = regplug.attach(model, optimizer, [plugin])
        assert state_of(model, optimizer) != untouched
        places += interrupter.call(session.detach)
        session.detach()
        assert state_of(model, optimizer) == untouched, f"at place {places}"
        assert session.plugins[0]._session_name is None
    assert places > 20


def test_detaching_again_restores_everything_of_several_plugins_at_any_instruction():
    """A signal is handled between instructions, not only between lines."""
    plugins = [KINDS["dropout"](), KINDS["decay"]()]
    model = network()
    optimizer = optimizer_of("decay", model)
    untouched = state_of(model, optimizer)
    for interrupter in every_place(opcodes=True, most=20_000):
        interrupter.left = interrupter.left * 29 - 28  # every 29th: a minute else
        session = regplug.attach(model, optimizer, plugins)
        interrupter.call(session.detach)
        session.detach()
        assert state_of(model, optimizer) == untouched


def test_an_accelerator_is_let_go_of_by_the_second_call():
    accelerate = pytest.importorskip("accelerate")

    accelerator = accelerate.Accelerator(cpu=True)
    model, optimizer = nn.Linear(2, 1), None
    plugin = L1(0.1)
    hooks = (accelerator._save_model_state_pre_hook, accelerator._load_model_state_pre_hook)
    try:
        for interrupter in every_place(opcodes=False, most=2000):
            session = regplug.attach(model, optimizer, [plugin], accelerator=accelerator)
            interrupter.call(session.detach)
            session.detach()
            assert [len(h) for h in hooks] == [0, 0]
    finally:
        forget_accelerate()


@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.parametrize("kind", ["penalty", "proximal", "l2_sp", "dropout", "constraint", "noise"])
def test_ctrl_c_within_a_step_leaves_grad_on_and_the_next_step_whole(kind, closure):
    def reference():
        model = network()
        optimizer = optimizer_of(kind, model)
        session = regplug.attach(model, optimizer, [KINDS[kind]()])
        return model, optimizer, session

    model, optimizer, session = reference()
    start = {name: w.detach().clone() for name, w in model.named_parameters()}

    def evaluate():
        optimizer.zero_grad()
        for w in model.parameters():
            w.grad = torch.full_like(w, 0.1)
        return torch.zeros(())

    def step():
        if closure:
            optimizer.step(evaluate)
        else:
            evaluate()
            optimizer.step()

    def rewind():
        session.load_state_dict({"steps": 0, "plugins": {p.name: p_state for p, p_state in saved}})
        optimizer.state.clear()
        with torch.no_grad():
            for name, w in model.named_parameters():
                w.copy_(start[name])

    saved = [(p, session.state_dict()["plugins"][p.name]) for p in session.plugins]
    step()  # the first settles what is settled once
    rewind()
    step()
    expected = [w.detach().clone() for w in model.parameters()]
    interrupted = 0
    at, stride = 1, 5
    while True:
        rewind()
        interrupter = Interrupter(at)
        if not interrupter.call(step):
            break
        interrupted += 1
        at += stride
        assert torch.is_grad_enabled()
        rewind()
        step()
        assert session.steps == 1
        for w, e in zip(model.parameters(), expected, strict=True):
            assert torch.equal(w, e)
    assert interrupted > 3
    session.detach()


def test_ctrl_c_at_any_line_of_an_event_leaves_grad_on():
    class Sees(regplug.Plugin):
        @hookimpl
        def on_gradients(self, session):
            assert not torch.is_grad_enabled()

        before_step = after_step = on_gradients

    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with regplug.attach(model, optimizer, [Sees()]) as session:
        session.after_each_step(lambda session: None)
        for w in model.parameters():
            w.grad = torch.ones_like(w)
        for event in (session.gradients_ready, session.before_update, session.after_update):
            for interrupter in every_place(opcodes=False, most=500):
                interrupter.call(event)
                assert torch.is_grad_enabled()
                assert {plugin._step for plugin in session.plugins} == {session.steps}
