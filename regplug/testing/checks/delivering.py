"""Check of a penalty's deliveries: each acts where it says, and all mean λ·value."""

from collections.abc import Iterable
from functools import partial

import torch

from regplug.bases.delivered import Delivered
from regplug.errors import PluginError
from regplug.penalty import Penalty
from regplug.testing.bench import Rig, Sample, Setup
from regplug.testing.registry import Case, check
from regplug.testing.subject import Failure, Skip, Subject, same

__all__: list[str] = []

Gradients = dict[str, torch.Tensor]


@check("delivery", after=("arguments", "gradient", "finite-difference", "strength", "clipping"))
def delivery(subject: Subject) -> Iterable[Case]:
    """Each delivery acts in its own event only, and all deliver λ·value, to the same scale.

    In the loss: the term is what metrics show, and brings its gradient. At the step: the loss and
    its gradient are the loop's own, and the same gradient is added afterwards. By the proximal
    operator: gradients are left alone, and the update's result is mapped by ``proximal(w, lr)``.
    ``"auto"`` is one of the first two, by what the loop does.
    """
    if not isinstance(subject.plugin, Delivered):
        raise Skip("it is no Penalty, so there is no delivery to choose")
    for setup in subject.setups():
        yield setup.regime, partial(_acts_there, subject, setup)
    if subject.plugin.delivery == "auto":
        for delivery in ("step", "loss"):
            if delivery in subject.deliveries:
                yield f"auto, {delivery}", partial(_auto, subject, delivery)
    if {"step", "loss"} <= set(subject.deliveries):
        yield "step as in the loss", partial(_alike, subject)


def _gradients(rig: Rig) -> Gradients:
    return {n: p.grad.clone() for n, p in rig.parameters.items() if p.grad is not None}


def _added(subject: Subject, setup: Setup) -> Gradients:
    """Return what is added to each gradient in one step, in whichever event."""
    found, plain = subject.rig(setup).move().pulls(0), subject.rig(None).move().pulls(0)
    return {name: pull - plain[name] for name, pull in found.items()}


def _first_unlike(found: Gradients, expected: Gradients, rtol: float = 0.0) -> str | None:
    for name, other in expected.items():
        atol = rtol * float(other.abs().max()) + 1e-12 if rtol and other.numel() else 0.0
        if not torch.allclose(found[name], other, rtol=rtol, atol=atol):
            return name
    return None


def _acts_there(subject: Subject, setup: Setup) -> None:
    rig, plain = subject.rig(setup).move(), subject.rig(None).move()
    assert rig.session is not None
    x = rig.data(0)
    bare = rig.criterion(x)
    value = _told(subject.rig(setup).move())
    total = rig.session.loss(bare)
    term = float(total.detach()) - float(bare.detach())
    total.backward()
    plain.backward(0)
    early, own = _gradients(rig), _gradients(plain)
    rig.optimizer.step()
    plain.optimizer.step()
    late = _gradients(rig)
    if setup.delivery == "loss":
        if value is not None and not abs(term - value) <= 1e-6 * abs(value) + 1e-9:
            raise Failure(
                f"its metrics show the value {value:.6g}, but its term of the loss is {term:.6g}"
            )
        if value and _first_unlike(early, own) is None:
            raise Failure("delivered in the loss, it adds nothing to the gradient of the loss")
        if (name := _first_unlike(late, early)) is not None:
            raise Failure(f"delivered in the loss, it adds to the gradient of {name} again")
        return
    if abs(term) > 1e-12 * abs(float(bare.detach())):
        raise Failure(f"with delivery={setup.delivery!r} it adds {term:.4g} to the loss")
    if (name := _first_unlike(early, own)) is not None:
        raise Failure(
            f"with delivery={setup.delivery!r} the gradient of {name} holds a part of it already "
            "after backward"
        )
    if setup.delivery == "step":
        if value and not any(bool(g.any()) for g in _added(subject, setup).values()):
            raise Failure("delivered at the step, it adds nothing to any gradient")
        return
    if (name := _first_unlike(late, early)) is not None:
        raise Failure(f"delivered by its proximal operator, it changes the gradient of {name}")
    _mapped(subject, setup, rig, plain)


def _mapped(subject: Subject, setup: Setup, rig: Rig, plain: Rig) -> None:
    """Compare with the operator, called on what the optimizer made of the weights."""
    penalty = setup.make()
    if not isinstance(penalty, Penalty) or not _is_plain(subject, penalty):
        return
    step = rig.optimizer.param_groups[0]["lr"]
    for name in subject.touched(setup):
        w = plain.parameters[name].detach()
        with torch.no_grad():
            expected = penalty.proximal(w.clone(), step)
        if not torch.allclose(rig.parameters[name].detach(), expected, rtol=1e-6, atol=1e-9):
            raise Failure(f"{name} is not proximal(w, {step:g}) of what the update left")


def _told(rig: Rig) -> float | None:
    """Return the value that its metrics show, None if there is none, or metrics fail."""
    assert rig.session is not None
    try:
        return rig.session.metrics().get(f"{_name(rig)}/value")
    except PluginError:  # the question of another check
        return None


def _alike(subject: Subject) -> None:
    setups = {name: subject.loud(name) for name in ("loss", "step")}
    in_loss, at_step = (_added(subject, setup) for setup in setups.values())
    if (name := _first_unlike(at_step, in_loss, 1e-6)) is not None:
        one, other = float(at_step[name].norm()), float(in_loss[name].norm())
        raise Failure(
            f"delivered at the step it adds a gradient of norm {one:.6g} to {name}, in the loss "
            f"one of {other:.6g}: both should be λ·gradient(w)"
        )
    penalty = setups["step"].make()
    if not isinstance(penalty, Penalty) or not _is_plain(subject, penalty):
        return
    start = subject.rig(None).move().parameters
    for name in subject.touched(setups["step"]):
        w = start[name].detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(penalty.value(w), w)
        expected = penalty.strength * gradient
        scale = float(expected.abs().max())
        if not torch.allclose(in_loss[name], expected, rtol=1e-6, atol=1e-6 * scale):
            ratio = float(in_loss[name].norm() / expected.norm())
            raise Failure(
                f"what it adds to the gradient of {name} is not λ times the gradient of value(w): "
                f"{ratio:.4g} times as long"
            )


def _auto(subject: Subject, delivery: str) -> None:
    """What is left to the loop is what the loop says: never both, and never neither."""
    told = subject.rig(subject.loud(delivery)).move()
    left = subject.rig(subject.loud("auto")).move()
    for step in range(3):
        for rig in (told, left):
            rig.optimizer.zero_grad()
            x = rig.data(step)
            (rig.loss(x) if delivery == "loss" else rig.criterion(x)).backward()
            rig.optimizer.step()
    calls = "calls" if delivery == "loss" else "does not call"
    same(
        left.snapshot(),
        told.snapshot(),
        f"with delivery='auto' in a loop that {calls} session.loss it acts otherwise than with "
        f"delivery={delivery!r}",
        rtol=1e-9,
        atol=1e-12,
    )


def _is_plain(subject: Subject, penalty: Penalty) -> bool:
    """Whether value(w) is given this model's weights as they are kept, and one λ is that of all."""
    has_companions = type(penalty).companions is not Penalty.companions
    return subject.bench.model is Sample and not has_companions and not penalty.mappings


def _name(rig: Rig) -> str:
    assert rig.plugin is not None
    return rig.plugin.name
