"""How much of an update is made by regularization."""

import torch
from torch.optim import Optimizer

from regplug.backend.update_rules import update_rule
from regplug.doctor.tracks import Look, Track
from regplug.errors import RegplugError

__all__ = ["share_of"]


def share_of(optimizer: Optimizer, track: Track, look: Look) -> None:
    """Work out, after a step, what part of the update of a parameter is regularization's."""
    before, after = track.before, track.after
    if before is None or after is None or before.shape != after.shape:
        return
    w = before.double()
    penalty = torch.zeros_like(w)
    for kind, seen in look.penalties.items():
        if seen.strength is None:
            continue
        if kind == "l1":
            penalty += seen.strength * w.sign()
        elif kind == "l2":
            penalty += 2 * seen.strength * w
        elif kind == "norm" and (norm := float(track.parameter.detach().double().norm())):
            penalty += seen.strength * w / norm
    coupled = look.decay is not None and look.decay.convention == "coupled"
    pulled = penalty + look.added * w
    if look.decay is not None and coupled:
        pulled = pulled + look.decay.strength * w
    if track.parameter.grad is not None and (look.penalties or bool(pulled.any())):
        # The loop's own part is in the gradient at the step, the optimizer's is not.
        rest = track.sampler.of(track.parameter.grad).double() - penalty - look.added * w
        look.pull = float(pulled.square().sum()), float(rest.square().sum())
    moved = torch.zeros_like(w)
    if look.decay is not None and not coupled:
        moved += look.decay.rate * w
    if bool(pulled.any()):
        step = _effective(optimizer, track)
        moved = moved + pulled * (look.lr if step is None else step)
    update = (after - before).double()
    look.share = float(moved.square().sum()), float(update.square().sum())


def _effective(optimizer: Optimizer, track: Track) -> torch.Tensor | float | None:
    """Return what the optimizer multiplies a gradient by, None if that is not known."""
    p = track.parameter
    if p.grad is None:
        return None
    state = optimizer.state.get(p)
    try:
        rule = update_rule(optimizer)
        step = rule.step(optimizer.param_groups[track.group], state or {}, p.grad)
    except (RegplugError, KeyError, TypeError):
        return None
    if isinstance(step, torch.Tensor) and step.ndim:
        return track.sampler.of(step).double()
    return float(step)
