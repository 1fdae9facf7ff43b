"""The contract between a session and its plugins: every hook, when it fires and what it may do.

One step of a training loop, with each event in its place::

    session = attach(model, optimizer, plugins)    # on_attach, once
    for batch in loader:
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss = session.loss(loss)                  # on_loss: each call, if the loop makes it
        loss.backward()                            #   (grad is on in it, if the loop has it on)
        clip_grad_norm_(parameters)
        optimizer.step()
        │                                          # on_gradients   gradients are final
        │                                          # before_step    weights may be changed
        │   the optimizer's own update
        └                                          # after_step     weights may be changed
                                                   # then session.steps goes up by one
    session.note(val_loss=…)                       # on_note
    session.metrics()                              # on_metrics
    session.state_dict()                           # on_state
    session.load_state_dict(state)                 # on_load_state
    session.detach()                               # on_detach, once, in reverse order

With ``optimizer.step(closure)``::

    closure()  →  on_gradients  →  on_closure  →  before_step (after the first evaluation alone)
    closure()  →  on_gradients  →  on_closure                  (each further evaluation)
    the optimizer's own update  →  after_step

The step events fire once per *real* step: one in which the optimizer updates weights. A step
that a ``GradScaler`` skips for overflow, one with no gradient at all, and the dummy step that
``torch.distributed.checkpoint`` makes fire nothing and count nothing. Plugins are called in the
order of the list that was attached. ``session.steps`` is, in every event of a step, the number
of real steps completed before it.

A hook implementation is a method marked with :data:`regplug.hookimpl`; it takes only the
arguments it names. Gradient mode is off in the step events; whoever needs autograd there turns it
on.
"""

import re
from collections.abc import Mapping
from typing import Any

import pluggy
import torch

from regplug.backend.marks import PROJECT
from regplug.view import SessionView

__all__ = ["PROJECT", "VERSION", "hookimpl", "hookspec", "serves"]

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

VERSION = "1.1"
"""The version of this contract. The second number grows when something is added, the first when
something changes that a plugin may rest on. A plugin says the one that it needs as ``requires``."""


def serves(requires: str) -> bool:
    """Return whether this contract serves a plugin that was written for version ``requires``.

    Args:
        requires: two whole numbers with a dot between, such as ``"1.0"``.

    Returns:
        True if the first numbers are equal and the second is no newer than that of :data:`VERSION`.

    Raises:
        ValueError: it is no version.

    >>> serves("1.0"), serves("2.0")
    (True, False)
    """
    if not isinstance(requires, str) or not re.fullmatch(r"\d+\.\d+", requires):
        raise ValueError(f"a version of the hook contract is written as '1.0', got {requires!r}")
    (major, minor), (ours, newest) = (map(int, v.split(".")) for v in (requires, VERSION))
    return major == ours and minor <= newest


@hookspec
def on_attach(session: SessionView) -> None:
    """Fires once, when the plugin is attached, before any step. Gradients may not exist.

    The place to check arguments against the model (raise a ``RegplugError``), to remember what
    is to be restored, and to change modules. Nothing is returned. If it raises, ``on_detach``
    fires for the plugins that were attached before it, and for this one.
    """


@hookspec
def on_detach(session: SessionView) -> None:
    """Fires once, at ``session.detach()`` or when attaching failed, in reverse order.

    Must restore everything that the plugin changed, and may be called after an ``on_attach``
    that stopped half-way. It fires again where Ctrl-C has interrupted it and ``detach()`` is called
    a second time. What the session tells afterwards (state, metrics, description) is asked of a
    copy of the plugin as it was before, so all may be let go of. Nothing is returned.
    """


@hookspec
def on_loss(session: SessionView, loss: torch.Tensor) -> torch.Tensor | None:
    """Fires at each ``session.loss(loss)``, before backward: any number of times per step.

    Gradient mode is the caller's. ``loss`` is the caller's own, without the terms of the other
    plugins; it is not to be changed in place. Returns a 0-d tensor that is *added* to the loss
    (turn its sign for parameters whose group says ``maximize``), or None. A
    :class:`regplug.Penalty` returns its formula instead, and the session puts those of all
    penalties into one node of the graph.
    """


@hookspec
def on_gradients(session: SessionView) -> None:
    """Fires once per real step, before the update; with a closure, after each evaluation of it.

    The gradients are final: accumulated, reduced over ranks, clipped. They are unscaled too,
    unless the plugin says that it multiplies by ``session.gradient_scale`` itself
    (``scaled_gradients = True``). ``p.grad`` may be changed in place; weights may not. Where both
    are a ``DTensor`` a gradient is placed as its weight is. A parameter whose ``.grad`` is None
    takes no part in the step. Nothing is returned.
    """


@hookspec
def on_closure(session: SessionView) -> torch.Tensor | float | None:
    """Fires after ``on_gradients`` at each evaluation of a closure, and only there.

    Returns the value, a number or 0-d tensor, of the term whose gradient ``on_gradients`` added,
    or None: a line search must see the objective whose gradient it is given.
    """


@hookspec
def before_step(session: SessionView) -> None:
    """Fires once per real step, after ``on_gradients`` and before the optimizer's update.

    Decoupled changes to the weights, in place. Gradients exist and should be left alone.
    Nothing is returned.
    """


@hookspec
def after_step(session: SessionView) -> None:
    """Fires once per real step, after the optimizer's update: proximal maps, constraints.

    Weights may be changed in place. ``session.updates`` still yields what took part in the step,
    with its gradients; ``p.grad`` may be None by now, where the update clears it.
    ``session.steps`` is not yet raised, so whatever is to hold in the next step is a schedule at
    ``session.steps + 1``. Nothing is returned.
    """


@hookspec
def on_note(session: SessionView, values: "Mapping[str, Any]") -> None:
    """Fires at each ``session.note(val_loss=…, …)``: the loop tells what it has measured.

    Between steps, any number of times, with grad off. ``values`` is a mapping of what was noted
    just now; tensors are detached. It is alike on all ranks that train one model together, which
    the session compares. Strengths may be set, for the next step. Nothing is returned.
    """


@hookspec
def on_metrics(session: SessionView) -> "Mapping[str, Any] | None":
    """Fires at each ``session.metrics()``, on every rank.

    Returns a mapping of short names to a float, a 0-d tensor that is the same on all ranks, or a
    :class:`regplug.Sum` over shards, which the session adds up over the ranks together with all
    others. The plugin's name and a slash are put before each key.
    """


@hookspec
def on_state(session: SessionView) -> "Mapping[str, Any] | None":
    """Fires at each ``session.state_dict()``.

    Returns what the plugin must remember to go on after a restart: numbers, strings, tensors,
    and lists and dicts of them (what ``torch.load(weights_only=True)`` accepts), or None.
    Strength schedules need nothing: the session saves the step count.

    What is kept of a sharded weight is best returned as a ``DTensor`` like it (``regplug.like``):
    it is saved whole, or as it is by ``torch.distributed.checkpoint``, and loads on other meshes.
    """


@hookspec
def on_load_state(session: SessionView, state: "Mapping[str, Any]") -> None:
    """Fires at each ``session.load_state_dict()``, after ``session.steps`` was set.

    ``state`` is what ``on_state`` returned, an empty mapping for None. What was a ``DTensor`` is
    whole now, or placed as this run's are: ``regplug.full`` takes either. If any plugin raises, the
    attributes of all are put back as they were, and it fires once more with what ``on_state`` then
    returns. Nothing is returned.
    """
