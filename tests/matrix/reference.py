"""What a task comes to in one process in float64, computed without regplug's session.

A penalty's gradient is taken by autograd from its value; its proximal operator is given the step
that the optimizer effectively takes, from the formula of the optimizer. Plugins of another kind
have no formula to be computed from: for them the plain loop, in float64 and with all micro-batches
of a step at once, is the reference (their own tests hold that loop against closed forms).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

import regplug
from regplug.selection.where import Selection
from tests.matrix.tasks import Outcome, Task, loop, outcome


def reference(task: Task, plugin: regplug.Plugin, delivery: str) -> Outcome:
    """Return the weights and metrics that every regime of ``task`` must give."""
    plugin = task.widened(copy.deepcopy(plugin))
    if by_formula(plugin):
        return _by_formula(task, plugin, delivery)
    return loop(replace(task, oracle=True), plugin)


def by_formula(plugin: regplug.Plugin) -> bool:
    """Whether the plugin is its formula alone: a penalty that overrides no event."""
    events = ("on_attach", "on_loss", "on_gradients", "before_step", "after_step", "on_metrics")
    return isinstance(plugin, regplug.Penalty) and all(
        getattr(type(plugin), event, None) is getattr(regplug.Penalty, event, None)
        for event in events
    )


def _by_formula(task: Task, plugin: Any, delivery: str) -> Outcome:
    task = replace(task, oracle=True)
    model = task.model()
    optimizer = task.optimizer_of(model.parameters())
    # A plugin for each weight, with the one strength that its own has.
    covered = [(n.parameter, alone(plugin, n.names)) for n in Selection(plugin.where).of(model)]
    metrics = []
    for step, ((x, y),) in enumerate(task.steps()):
        for each in (plugin, *(own for _, own in covered)):
            each._step = step
        optimizer.zero_grad()
        loss = task.criterion(model(x), y)
        if delivery == "loss":
            loss = loss + sum(own.strength * own.value(w) for w, own in covered)
        (loss * task.share(step)).backward()
        if task.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), task.clip)
        if delivery == "step":
            for w, own in covered:
                copied = w.detach().clone().requires_grad_()
                (gradient,) = torch.autograd.grad(own.value(copied), copied)
                w.grad += own.strength * gradient
        optimizer.step()
        if delivery == "proximal":
            with torch.no_grad():
                for w, own in covered:
                    w.copy_(own.proximal(w, effective_step(optimizer, w)))
        for each in (plugin, *(own for _, own in covered)):
            each._step = step + 1
        with torch.no_grad():
            metrics.append(
                {
                    "value": float(
                        sum(
                            own.strengths().get("strength", 1.0) * own.value(w)
                            for w, own in covered
                        )
                    ),
                    **plugin.strengths(),
                    "zeros": sum(int((w == 0).sum()) for w, _ in covered)
                    / sum(w.numel() for w, _ in covered),
                }
            )
    named = [{f"{plugin.name}/{key}": v for key, v in found.items()} for found in metrics]
    return outcome(model, named)


def alone(plugin: Any, names: Sequence[str]) -> Any:
    """Return a plugin whose strengths are those of the first pattern that matches a weight."""
    own = copy.deepcopy(plugin)
    for attribute, mapping in plugin.mappings.items():
        first = next(p for p in mapping.entries if any(fnmatchcase(name, p) for name in names))
        setattr(own, attribute, mapping.entries[first])
    return own


def effective_step(optimizer: torch.optim.Optimizer, w: torch.Tensor) -> Any:
    """What a constant gradient is multiplied by in the long run."""
    (group,) = optimizer.param_groups
    if isinstance(optimizer, torch.optim.SGD):
        return group["lr"] / (1 - group["momentum"])
    state = optimizer.state[w]
    corrected = state["exp_avg_sq"] / (1 - group["betas"][1] ** state["step"].item())
    step = group["lr"] / (corrected.sqrt() + group["eps"])
    return torch.where(corrected == 0, 0.0, step)
