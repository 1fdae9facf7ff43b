"""Check that a formula is a function: of the weight it is given, which it leaves as it is."""

from collections.abc import Callable, Iterable
from functools import partial

import torch

from regplug.penalty import Penalty
from regplug.testing.checks.formula import weights_away_from_zero
from regplug.testing.registry import Case, check
from regplug.testing.subject import Failure, Subject

__all__: list[str] = []

Formula = Callable[[torch.Tensor], torch.Tensor]


@check("pure")
def pure(subject: Subject) -> Iterable[Case]:
    """The formula is a function of w: it changes no weight, and says the same each time.

    Called again, on another instance, with gradients recorded or not, after other weights, also in
    the same memory: the same bits. The value and the gradient are those without λ, so no strength
    changes them.
    """
    penalty = subject.penalty
    formulas: dict[str, Formula] = {"value(w)": penalty.value, "gradient(w)": penalty.gradient}
    if type(penalty).proximal is not Penalty.proximal:
        formulas["proximal(w, step)"] = lambda w: penalty.proximal(w, 0.3)
    for words, formula in formulas.items():
        yield words, partial(_changes_nothing, words, formula)
        yield f"{words} again", partial(_again, words, formula)
        yield f"{words} in the same memory", partial(_in_the_same_memory, words, formula)
    if type(penalty).gradients is not Penalty.gradients:
        yield "gradients", partial(_lists, penalty, "gradients")
    if type(penalty).add_gradients is not Penalty.add_gradients:
        yield "add_gradients", partial(_lists, penalty, "add_gradients")
    yield "without λ", partial(_without_strength, subject, penalty)


def _changes_nothing(words: str, formula: Formula) -> None:
    for w in weights_away_from_zero():
        before = w.clone()
        formula(w)
        if not torch.equal(w, before):
            raise Failure(f"{words} changes w: work on new tensors, with no operation in place")
        # As a parameter comes: a leaf that requires a gradient.
        leaf = w.clone().requires_grad_()
        with torch.enable_grad():
            try:
                formula(leaf)
            except RuntimeError as error:
                if "in-place" not in str(error):
                    raise
                raise Failure(f"{words} works on w in place: {error}") from error
        if leaf.grad is not None:
            raise Failure(f"{words} calls backward, which leaves a gradient in w.grad")
        if not torch.equal(leaf.detach(), before) or not leaf.requires_grad:
            raise Failure(f"{words} changes w where w requires a gradient")


def _again(words: str, formula: Formula) -> None:
    pairs = list(weights_away_from_zero())
    with torch.no_grad():
        first = [formula(w.clone()).clone() for w in pairs]
        second = [formula(w.clone()).clone() for w in pairs]
    recorded = []
    for w in pairs:
        with torch.enable_grad():
            recorded.append(formula(w.clone().requires_grad_()).detach().clone())
    for one, other, with_graph in zip(first, second, recorded, strict=True):
        if not torch.allclose(one, other, rtol=0, atol=0, equal_nan=True):
            raise Failure(
                f"{words} of the same w is another one when it is called again: what it remembers "
                "between calls belongs into hooks"
            )
        if not torch.allclose(one, with_graph, rtol=1e-9, atol=0, equal_nan=True):
            raise Failure(f"{words} is another one where gradients are recorded")


@torch.no_grad()
def _in_the_same_memory(words: str, formula: Formula) -> None:
    for w in weights_away_from_zero():
        other = 0.7 * w.flip(0)
        right = [(numbers, formula(numbers.clone()).clone()) for numbers in (w, other)]
        held = w.clone()
        # Each step changes weights where they are, and some ways of that leave no trace.
        changes = [(becomes, *pair) for becomes in (held.copy_, held.data.copy_) for pair in right]
        for becomes, numbers, expected in changes:
            becomes(numbers)
            if not torch.allclose(formula(held), expected, rtol=1e-9, atol=0, equal_nan=True):
                raise Failure(
                    f"{words} is still that of the weights that were in the same memory before: "
                    "keep nothing of a weight from one call to the next, neither by its address "
                    "nor by its id"
                )


def _lists(penalty: Penalty, name: str) -> None:
    ws = list(weights_away_from_zero())
    before = [w.clone() for w in ws]
    with torch.no_grad():
        if name == "gradients":
            penalty.gradients(ws, 0.5)
        else:
            penalty.add_gradients([torch.ones_like(w) for w in ws], ws, 0.5)
    if not all(torch.equal(w, other) for w, other in zip(ws, before, strict=True)):
        raise Failure(f"{name} changes the weights that it is given")


def _without_strength(subject: Subject, penalty: Penalty) -> None:
    other = subject.penalty
    for name, attribute in subject.scheduled.items():
        if name == "strength":
            other.strength = min(penalty.strength * 3, attribute.high)
    with torch.no_grad():
        for w in weights_away_from_zero():
            for words, one, two in (
                ("value(w)", penalty.value(w), other.value(w)),
                ("gradient(w)", penalty.gradient(w), other.gradient(w)),
            ):
                if not torch.allclose(one, two, rtol=1e-9, atol=0, equal_nan=True):
                    raise Failure(f"{words} depends on the strength: leave λ out, it is put there")
