"""Check of the loss event: a term is added to the loss, and that is all that happens."""

from collections.abc import Iterable
from functools import partial

import torch

from regplug.backend.private import version as version_of
from regplug.bases.delivered import Delivered
from regplug.errors import PluginError
from regplug.testing.bench import Rig, Setup
from regplug.testing.checks.graphs import nodes_kept
from regplug.testing.registry import Case, check
from regplug.testing.subject import Failure, Skip, Subject

__all__: list[str] = []

CALLS = 4


@check("loss-event", after=("arguments", "pure", "differentiable"))
def loss_event(subject: Subject) -> Iterable[Case]:
    """``session.loss`` gives the loss plus a term with a gradient, each time the same.

    The caller's loss, its dtype, the weights and their ``.grad`` stay as they are; the term is not
    the loss over again, has a graph, and that graph is gone after ``backward``. A penalty's term
    hangs on nothing but the weights: neither on the loss, nor on how often it is asked for, nor on
    ``no_grad`` and ``eval``.
    """
    if not subject.implements("on_loss"):
        raise Skip("it does not implement on_loss")
    deliveries = [d for d in subject.deliveries if d in (None, "loss")]
    for delivery in deliveries or subject.deliveries[:1]:
        setup = subject.loud(delivery)
        yield "the loss stays", partial(_stays, subject, setup)
        yield "the term", partial(_term, subject, setup)
        yield "dtype", partial(_dtype, subject, setup)
        yield "again and again", partial(_again, subject, setup)
        yield "graphs", partial(_graphs, subject, setup)
        if isinstance(subject.plugin, Delivered):
            yield "no_grad and eval", partial(_anywhere, subject, setup)


def _ask(rig: Rig, loss: torch.Tensor) -> torch.Tensor:
    assert rig.session is not None
    try:
        return rig.session.loss(loss)
    except PluginError as error:
        raise Failure(f"the loss event fails: {error}") from error


def _term_at(rig: Rig, number: float) -> float:
    """Return what is added to a loss of that number, after a forward pass."""
    out = rig.criterion(rig.data(0))
    loss = out - out.detach() + number
    return float(_ask(rig, loss).detach()) - float(loss.detach())


def _term(subject: Subject, setup: Setup) -> None:
    numbers = (0.75, 2.0, 5.5)
    # A loop of its own for each, so that how often it was asked makes no difference.
    terms = [_term_at(subject.rig(setup), number) for number in numbers]
    again = _term_at(subject.rig(setup), numbers[0])
    if again != terms[0] or subject.plugin.stochastic:
        return  # it draws at random, and can't be compared
    bare = [term - number for term, number in zip(terms, numbers, strict=True)]
    if max(bare) - min(bare) <= 1e-9 * max(numbers):
        raise Failure(
            "on_loss returns the loss with its term in it, so that the loss counts twice: return "
            "the term alone, the session adds it"
        )
    _is_off(subject, setup, numbers[1])
    if isinstance(subject.plugin, Delivered) and max(terms) - min(terms) > 1e-9 * max(numbers):
        raise Failure(
            f"its term is {terms[0]:.6g} with a loss of {numbers[0]:g} and {terms[-1]:.6g} with one"
            f" of {numbers[-1]:g}: a penalty is λ·value of the weights, whatever the loss"
        )
    if max(terms) - min(terms) <= 1e-9 * max(numbers):
        _keeps_gradient(subject, setup)
    _has_graph(subject, setup)


def _is_off(subject: Subject, setup: Setup, number: float) -> None:
    """A loss that comes back larger is seen where the plugin is turned off: then it is the loss."""
    if not subject.off:
        return
    term = _term_at(subject.rig(setup.but(**subject.by_pattern(subject.off))), number)
    if abs(term - number) <= 1e-9 * number:
        raise Failure(
            f"turned off, its term is {term:.6g}, which is the loss: on_loss returns what is added "
            "to the loss, and not what the loss is to be"
        )


def _gradients(
    rig: Rig, total: torch.Tensor, *, keep_graph: bool = False
) -> list[torch.Tensor | None]:
    leaves = [p for p in rig.parameters.values() if p.requires_grad]
    return list(torch.autograd.grad(total, leaves, allow_unused=True, retain_graph=keep_graph))


def _keeps_gradient(subject: Subject, setup: Setup) -> None:
    """What the loss itself brings to the weights stays: of thrice the loss, thrice as much.

    More than that may be a term made of the loss's own gradient; but not in its direction.
    """

    def brought(scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        rig = subject.rig(setup)
        bare = scale * rig.criterion(rig.data(0))
        total = _ask(rig, bare)
        if not total.requires_grad:
            raise Failure("the loss comes back without its graph: leave that to the caller")
        found = _gradients(rig, total, keep_graph=True)
        return _flat(rig, found), _flat(rig, _gradients(rig, bare))

    plain = subject.rig(None)
    own = _flat(plain, _gradients(plain, plain.criterion(plain.data(0))))
    (once, bare), (thrice, _) = brought(1.0), brought(3.0)
    more = thrice - once - 2 * own
    hooked = not torch.allclose(bare, own, rtol=1e-6, atol=1e-9)
    turned = not torch.allclose(more, torch.zeros_like(more), atol=1e-9 + 1e-6 * _size(own))
    if hooked or (turned and abs(float(more @ own)) > (1 - 1e-6) * _size(more) * _size(own)):
        raise Failure(
            "it changes the gradient that the loss itself brings (by a hook on it, or by what it "
            "does to its graph): on_loss returns a term, and leaves the loss alone"
        )


def _flat(rig: Rig, gradients: list[torch.Tensor | None]) -> torch.Tensor:
    leaves = [p for p in rig.parameters.values() if p.requires_grad]
    found = [
        torch.zeros_like(p) if g is None else g for p, g in zip(leaves, gradients, strict=True)
    ]
    return torch.cat([g.flatten() for g in found])


def _size(vector: torch.Tensor) -> float:
    return float(vector.norm())


def _has_graph(subject: Subject, setup: Setup) -> None:
    rig, plain = subject.rig(setup), subject.rig(None)
    bare = rig.criterion(rig.data(0))
    total = _ask(rig, bare)
    if not total.requires_grad:
        raise Failure("the loss comes back without its graph: leave that to the caller")
    if abs(float(total.detach()) - float(bare.detach())) <= 1e-12:
        raise Skip("its term is 0 here")
    found = _gradients(rig, total)
    without = _gradients(plain, plain.criterion(plain.data(0)))
    for one, other in zip(found, without, strict=True):
        if (one is None) != (other is None):
            return
        if one is not None and other is not None and not torch.equal(one, other):
            return
    raise Failure(
        "its term is a number without a gradient: compute it from the weights or outputs "
        "themselves, with no detach(), .data, .item(), float() or torch.no_grad() on the way"
    )


def _stays(subject: Subject, setup: Setup) -> None:
    rig = subject.rig(setup)
    loss = rig.criterion(rig.data(0))
    number, version = loss.detach().clone(), version_of(loss)
    before = {name: p.detach().clone() for name, p in rig.parameters.items()}
    total = _ask(rig, loss)
    if not torch.equal(loss.detach(), number) or version_of(loss) != version:
        raise Failure(
            f"it changes the caller's loss in place, from {float(number):.6g} to "
            f"{float(loss.detach()):.6g}: return the term, and the session adds it to a new tensor"
        )
    if not loss.requires_grad:
        raise Failure(
            "it takes the caller's loss off its graph, as detach_() does: what is to be looked at "
            "only is loss.detach()"
        )
    for name, p in rig.parameters.items():
        if not torch.equal(p.detach(), before[name]):
            raise Failure(f"it changes {name} in the loss event")
        if p.grad is not None:
            raise Failure(
                f"{name} has a gradient before backward: the loss event is not the place to call "
                "backward"
            )
    if total.ndim:
        raise Failure(f"the loss comes back with shape {tuple(total.shape)}")


def _dtype(subject: Subject, setup: Setup) -> None:
    for dtype in (torch.float64, torch.float32):
        rig = subject.rig(setup, dtype=dtype)
        loss = rig.criterion(rig.data(0))
        total = _ask(rig, loss)
        if (total.dtype, total.device) != (loss.dtype, loss.device):
            raise Failure(
                f"the loss of {loss.dtype} on {loss.device} comes back as {total.dtype} on "
                f"{total.device}"
            )


def _again(subject: Subject, setup: Setup) -> None:
    """Ask several times in one step: each time the same term, whose backward pass works."""
    rig = subject.rig(setup)
    if subject.plugin.stochastic or subject.implements("on_state"):
        raise Skip("it draws at random, or remembers")
    first: tuple[float, list[torch.Tensor | None]] | None = None
    for call in range(1, CALLS + 1):
        bare = rig.criterion(rig.data(0))
        number = float(bare.detach())
        total = _ask(rig, bare)
        term = float(total.detach()) - number
        try:
            found = _gradients(rig, total)
        except RuntimeError as error:
            if "second time" not in str(error):
                raise
            raise Failure(
                f"backward fails the {call}. time: it goes on with a term whose graph the first "
                "backward pass has used up; make a new one in each on_loss, and detach() what is "
                "kept"
            ) from error
        if first is None:
            first = term, found
            continue
        if abs(term - first[0]) > 1e-9 * max(1.0, abs(first[0])):
            raise Failure(
                f"asked for the {call}. time from the same weights and data, its term is {term:.6g}"
                f", the first time it was {first[0]:.6g}; a plugin that remembers implements "
                "on_state"
            )
        for one, other in zip(found, first[1], strict=True):
            if (one is None) != (other is None) or (
                one is not None and other is not None and not torch.allclose(one, other, 1e-9)
            ):
                raise Failure(
                    f"asked for the {call}. time from the same weights and data, its term has "
                    "another gradient than the first time"
                )


def _graphs(subject: Subject, setup: Setup) -> None:
    """What the plugin keeps must not hold the graphs of all terms that there ever were."""
    rig = subject.rig(setup)
    counts = []
    for step in range(6):
        rig.step(step)
        counts.append(nodes_kept(rig.plugin))
    if counts[-1] > counts[2] > 0:
        raise Failure(
            f"after 3 steps it keeps {counts[2]} nodes of graphs, after 6 steps {counts[-1]}: keep "
            "numbers, by detach() or float(), and no terms"
        )


def _anywhere(subject: Subject, setup: Setup) -> None:
    rig = subject.rig(setup)
    loss = torch.tensor(1.5, dtype=rig.dtype)
    term = float(_ask(rig, loss).detach()) - 1.5
    with torch.no_grad():
        silent = float(_ask(rig, loss)) - 1.5
    rig.model.eval()
    evaluated = float(_ask(rig, loss).detach()) - 1.5
    for where, found in (("under torch.no_grad()", silent), ("after model.eval()", evaluated)):
        if abs(found - term) > 1e-9 * max(1.0, abs(term)):
            raise Failure(
                f"its term is {term:.6g}, but {found:.6g} {where}: a validation loss would be that "
                "of another objective"
            )
