"""A plugin that notes every event, and the order in which they are to fire."""

import torch

import regplug
from regplug import hookimpl


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
    def on_note(self, session, values):
        self.note("on_note", session)

    @hookimpl
    def on_metrics(self, session):
        self.note("on_metrics", session)

    @hookimpl
    def on_state(self, session):
        self.note("on_state", session)

    @hookimpl
    def on_load_state(self, session, state):
        self.note("on_load_state", session)


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
2 a on_note
2 b on_note
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


def watched(model, optimizer, log):
    """Attach one watch, and forget that it was attached."""
    session = regplug.attach(model, optimizer, [Watch("a", log)])
    log.clear()
    return session


ONE_STEP = ["0 a on_gradients", "0 a before_step", "0 a after_step"]
