"""Check of what ``where=`` comes to: what is selected is acted on, and nothing else."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch

from regplug.bases.delivered import Delivered
from regplug.errors import RegplugError, SelectionError
from regplug.testing.bench import Rig, Setup, Snapshot
from regplug.testing.recipe import Recipe
from regplug.testing.registry import Case, check
from regplug.testing.subject import Failure, Skip, Subject

__all__: list[str] = []


@check("where", after=("arguments", "acts"))
def where(subject: Subject) -> Iterable[Case]:
    """The constructor's ``where`` decides what it acts on, in each delivery and in each spelling.

    One name, a list with an exclusion, and a callable: what they select changes, the rest keeps its
    bits. A selection that fits nothing is refused, when it is attached or in the first step.
    """
    recipe = subject.recipe
    if "where" not in recipe.parameters:
        raise Skip("its constructor takes no where")
    yield "fits nothing", partial(_fits_nothing, subject, recipe)
    for setup in subject.setups():
        yield f"one, {setup.regime}", partial(_one, subject, recipe, setup)
    setup = subject.loud(subject.deliveries[0])
    yield "all but one", partial(_but_one, subject, recipe, setup)
    yield "a callable", partial(_callable, subject, recipe, setup)
    if subject.adds_to_loss:
        yield "modules", partial(_modules, subject, recipe, setup)


def _fits_nothing(subject: Subject, recipe: Recipe) -> None:
    rig = subject.rig(None)
    try:
        rig.attach(recipe.but(where="no_such_name_in_the_exam.*")())
        rig.step(0)  # session.updates says so where on_attach has not
    except (RegplugError, ValueError, LookupError):
        return
    rig.detach()
    raise Failure(
        "where='no_such_name_in_the_exam.*' selects nothing, and yet it trains without a word: use "
        "where (session.coverage and session.updates of a Selection raise where nothing fits)"
    )


def _attached(subject: Subject, recipe: Recipe, setup: Setup, selection: object) -> Rig:
    """Return a rig with the plugin, made by its constructor with this ``where``."""
    values = {key: value for key, value in setup.values.items() if key != "where"}
    made = Setup(recipe.but(where=selection), setup.delivery, values)
    try:
        return subject.rig(made)
    except (RegplugError, ValueError, TypeError, AttributeError) as error:
        raise Skip(f"it refuses where={selection!r}") from error


def _changed(found: Snapshot, plain: Snapshot) -> set[str]:
    weights = {n for n, w in plain.weights.items() if not torch.equal(w, found.weights[n])}
    return weights | {n for n, x in plain.numbers.items() if found.numbers.get(n) != x}


def _touched(subject: Subject, setup: Setup) -> list[str]:
    plain = subject.rig(None).move().run(1)
    changed = _changed(subject.rig(setup).move().run(1), plain)
    if not (names := [name for name in plain.weights if name in changed]):
        raise Skip("it changed no weight in the first step here")
    return names


def _one(subject: Subject, recipe: Recipe, setup: Setup) -> None:
    everywhere = _changed(subject.rig(setup).move().run(2), subject.rig(None).move().run(2))
    plain = subject.rig(None).move().run(1)
    by_weights = [n for n in plain.weights if n in everywhere]
    numbers = [n for n in plain.numbers if n in everywhere]
    if not by_weights and not numbers:
        raise Skip("it changed nothing in the first steps here")
    if numbers:
        module = numbers[0].rpartition(".")[0]
        selection, belongs = module, lambda name: name.startswith(f"{module}.")
    else:
        selection, belongs = by_weights[0], lambda name: name == by_weights[0]
    _alone(subject, _attached(subject, recipe, setup, selection), repr(selection), belongs)


def _alone(subject: Subject, rig: Rig, selection: str, belongs: Callable[[str], bool]) -> None:
    # Whatever else is changed by the second step may follow from what was changed in the first.
    found, plain = rig.move().run(1), subject.rig(None).move().run(1)
    changed = _changed(found, plain)
    if subject.plugin.shapes_loss:  # whose gradients are those of all that is trained
        changed -= plain.weights.keys()
    for name in sorted(changed):
        if not belongs(name):
            raise Failure(
                f"with where={selection} it changed {name}: use where, and nothing else"
                + _also(subject)
            )
    if not changed and isinstance(subject.plugin, Delivered):
        raise Failure(f"with where={selection} it left alone what that selects")


def _also(subject: Subject) -> str:
    """Return what else a term of the loss may say."""
    if not subject.adds_to_loss:
        return ""
    return (
        "; a term that is about some weights or layers, and trains others as well, says "
        "shapes_loss = True"
    )


def _but_one(subject: Subject, recipe: Recipe, setup: Setup) -> None:
    if subject.plugin.shapes_loss:
        raise Skip("it trains others than it is about")
    name, *others = _touched(subject, setup)
    if not others:
        raise Skip("it acts on one weight here")
    selection = ["weights", f"!{name}"]
    rig = _attached(subject, recipe, setup, selection)
    found, plain = rig.move().run(1), subject.rig(None).move().run(1)
    changed = _changed(found, plain)
    if name in changed:
        raise Failure(f"with where={selection!r} it changed {name}{_also(subject)}")
    if not changed and isinstance(subject.plugin, Delivered):
        raise Failure(f"with where={selection!r} it changed nothing")


def _callable(subject: Subject, recipe: Recipe, setup: Setup) -> None:
    first = _touched(subject, setup)[0]

    def chosen(name: str, parameter: Any = None, module: Any = None) -> bool:
        return name == first

    rig = _attached(subject, recipe, setup, chosen)
    _alone(subject, rig, f"a callable that chooses {first}", lambda name: name == first)


def _modules(subject: Subject, recipe: Recipe, setup: Setup) -> None:
    """Two modules that it accepts make two different terms."""
    found: list[tuple[str, Snapshot]] = []
    for path, _ in subject.rig(None).model.named_modules():
        if not path:
            continue
        try:
            rig = _attached(subject, recipe, setup, path)
            found.append((path, rig.move().run(1)))
        except (Skip, SelectionError):
            continue
        if len(found) == 2:
            break
    if len(found) < 2:
        raise Skip("it accepts the names of less than two modules")
    (one, first), (other, second) = found
    if not _changed(first, second):
        raise Failure(f"with where={one!r} and where={other!r} it does the same")
