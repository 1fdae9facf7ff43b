"""Many models trained as one: parameters with leading dimensions (folds, strengths).

Folds of one size are trained together, so that no rows are padded and a mean loss is the mean over
a fold's own rows. Within a fold the rows are shared by all strengths.
"""

import copy
import time
import warnings
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.optim import Optimizer

import regplug
from regplug import Plugin
from regplug.errors import RegplugError, SpecError
from regplug.selection.where import Selection
from regplug.session.composition import in_order
from regplug.tune.data import as_numpy
from regplug.tune.estimator import wrap
from regplug.tune.fits import Fit, Outcome, Work, failed, plugins_of, score
from regplug.tune.jobs import Task
from regplug.tune.models import Tensors, losses, outputs
from regplug.tune.predictor import as_input, coefficients
from regplug.tune.recipe import Recipe, like
from regplug.tune.seeding import seeded
from regplug.tune.stacked_penalty import StackedPenalty
from regplug.tune.targets import form_of, numbers
from regplug.tune.trial import CantStack, trial

__all__ = ["plan", "tasks", "train_stacked"]


MEMORY = 1 << 30
"""How many bytes one batch of fits may take: weights, gradients, optimizer state, activations."""


PRODUCTS = 3 * 10**8
"""How many products of a row and a weight one step of a batch may take. Larger batches are no
faster, and a search of several tells its progress and keeps what is done."""


def tasks(recipe: Recipe, work: Work, fits: Sequence[Fit], workers: int) -> list[Task] | None:
    """Return the tasks that train ``fits`` at once, in at least ``workers`` parts.

    None if they have to be trained one by one, with a warning that says why.
    """
    if not fits:
        return []
    try:
        return plan(recipe, work, fits, workers)
    except CantStack as why:
        # Of the caller of fit(), by way of the schedule.
        warnings.warn(f"this Recipe's fits are trained one by one: {why}", stacklevel=6)
        return None


def plan(recipe: Recipe, work: Work, fits: Sequence[Fit], workers: int) -> list[Task]:
    """Return tasks that train ``fits`` in as few batches as memory and workers allow.

    Raises:
        CantStack: they have to be trained one by one.
        RegplugError: the first fit raises.
    """
    try:
        with seeded(recipe.seed):
            size, products = _cost_of_fit(recipe, work, fits[0])
    except CantStack:
        raise
    except Exception as error:
        raise failed(f"the fit with {fits[0]}", error) from error
    by_fold: dict[int, list[Fit]] = defaultdict(list)
    for fit in fits:
        by_fold[fit.fold].append(fit)
    # Folds are stacked if they have as many rows and the same strengths are still to be done.
    alike: dict[tuple[int, tuple[int, ...]], list[int]] = defaultdict(list)
    for fold, its in by_fold.items():
        alike[len(work.splits[fold][0]), tuple(fit.candidate for fit in its)].append(fold)
    tasks: list[Task] = []
    for (_, candidates), folds in alike.items():
        room = max(1, min(MEMORY // size, PRODUCTS // products) // len(folds))
        width = min(room, -(-len(candidates) // workers))
        for first in range(0, len(candidates), width):
            part = [by_fold[fold][first : first + width] for fold in folds]
            tasks.append((train_stacked, (recipe, work, part)))
    return tasks


def _cost_of_fit(recipe: Recipe, work: Work, fit: Fit) -> tuple[int, int]:
    """Return how many bytes a fit takes, and how many products a step of it."""
    X, y = work.training(fit.fold)
    model, _ = recipe.start()
    other, _ = recipe.start()
    _check_new(model, other)
    batch = as_input(model, X)[: recipe.batch_size]
    target = _taken(recipe, other, batch, y)[: recipe.batch_size]
    size = trial(recipe, plugins_of(fit.specs), batch, target)
    return size, max(1, len(batch) * sum(p.numel() for p in model.parameters()))


def _taken(recipe: Recipe, model: nn.Module, batch: torch.Tensor, y: Any) -> torch.Tensor:
    """Return a fold's target in the form that the loss takes; ``batch`` are its first rows."""
    target, labels = numbers(y, like(model))
    with torch.no_grad():
        output = model(batch)
    form = form_of(recipe.loss, output, target, slice(len(batch)), words=labels is not None)
    return form.of(target)


def _check_new(model: nn.Module, other: nn.Module) -> None:
    """Refuse a ``build`` whose models share weights: each fit would go on from the one before.

    Raises:
        SpecError: they do.
    """
    known = {id(p) for p in model.parameters()}
    shared = [name for name, p in other.named_parameters() if id(p) in known and p.requires_grad]
    if shared:
        raise SpecError(
            f"build must make a new model at each call, but two share {', '.join(shared[:3])}: "
            "fits would go on from each other's weights"
        )


def train_stacked(recipe: Recipe, work: Work, fits: Sequence[Sequence[Fit]]) -> list[Outcome]:
    """Train and score fits at once: a list for each fold, all with the same strengths in one order.

    Raises:
        RegplugError: something raised; the message names the strengths and the folds.
    """
    began = time.perf_counter()
    try:
        model, stack = _train(recipe, work, fits)
    except Exception as error:
        folds = ", ".join(str(its[0].fold) for its in fits)
        strengths = f"{dict(fits[0][0].params)} to {dict(fits[0][-1].params)}"
        raise failed(f"the fits with {strengths} on folds {folds}", error) from error
    seconds = (time.perf_counter() - began) / sum(map(len, fits))
    outcomes: list[Outcome] = []
    for row, its in enumerate(fits):
        of_row = {name: p[row] for name, p in stack.items()}
        outcomes += _score(work, model, of_row, its, seconds)
    return outcomes


def _train(recipe: Recipe, work: Work, fits: Sequence[Sequence[Fit]]) -> tuple[nn.Module, Tensors]:
    model, single = recipe.start()
    data = [work.training(its[0].fold) for its in fits]
    inputs = torch.stack([as_input(model, X) for X, _ in data])
    first = inputs[:, : recipe.batch_size]
    taken = [_taken(recipe, model, x, y) for x, (_, y) in zip(first, data, strict=True)]
    targets = torch.stack(taken)
    shape = len(fits), len(fits[0])
    stack = {
        name: p.detach().expand(*shape, *p.shape).clone().requires_grad_()
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    optimizer = _stacked_optimizer(model, single, stack)
    models = [plugins_of(fit.specs) for fit in fits[0]]
    penalties = _penalties(model, single, optimizer, stack, models)
    for step, index in enumerate(recipe.batches(inputs.shape[1])):
        optimizer.zero_grad()
        batch, target = (
            (inputs, targets) if isinstance(index, slice) else (inputs[:, index], targets[:, index])
        )
        total = losses(recipe, model, stack, batch, target).sum()
        total.backward()
        with torch.no_grad():
            for penalty in penalties:
                penalty.add_gradients(step)
        optimizer.step()
        with torch.no_grad():
            for penalty in penalties:
                penalty.apply_proximal(step)
    return model.eval(), {name: p.detach() for name, p in stack.items()}


def _stacked_optimizer(model: nn.Module, single: Optimizer, stack: Tensors) -> Optimizer:
    """Return an optimizer like ``single`` for the stacked parameters, with its groups."""
    names = {id(p): name for name, p in model.named_parameters()}
    groups = []
    for group in single.param_groups:
        options = {
            key: value for key, value in group.items() if key not in ("params", "param_names")
        }
        chosen = [stack[name] for p in group["params"] if (name := names.get(id(p))) in stack]
        if chosen:
            groups.append({**options, "params": chosen})
    make: Any = type(single)
    stacked: Optimizer = make(groups)
    return stacked


def _penalties(
    model: nn.Module,
    single: Optimizer,
    optimizer: Optimizer,
    stack: Tensors,
    models: Sequence[Sequence[Plugin]],
) -> list[StackedPenalty]:
    """Return the plugins of all models, position by position, each with its stacked parameters."""
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    names = {id(p): name for name, p in model.named_parameters()}
    found = []
    for plugins in zip(*map(in_order, models), strict=True):
        with regplug.attach(model, single, [plugins[0]]) as session:
            coverage = session.coverage(Selection(plugins[0].where))
            chosen = [stack[names[id(entry.parameter)]] for entry in coverage.trainable]
        weights = [(p, group_of[id(p)]) for p in chosen]
        found.append(StackedPenalty(plugins, weights, optimizer))
    # Terms of the loss have their gradients before the step begins.
    return sorted(found, key=lambda penalty: penalty.delivery == "step")


def _score(
    work: Work, model: nn.Module, stack: Tensors, fits: Sequence[Fit], seconds: float
) -> list[Outcome]:
    """Score the models of one fold; ``stack`` has shape ``(strengths, …)``."""
    X, y = work.test(fits[0].fold)
    with torch.no_grad():
        found = as_numpy(
            outputs(model, {n: p[None] for n, p in stack.items()}, as_input(model, X)[None])[0]
        )
    names = {id(p): name for name, p in model.named_parameters()}
    try:
        chosen = [names[id(named.parameter)] for named in Selection("weights").of(model)]
    except RegplugError:
        chosen = []
    fixed = sum(int(model.get_parameter(n).count_nonzero()) for n in chosen if n not in stack)
    counts = [torch.count_nonzero(stack[n].flatten(1), dim=1).cpu() for n in chosen if n in stack]
    nonzero = (
        sum(counts, torch.zeros(len(fits), dtype=torch.int64, device="cpu")) + fixed
    ).tolist()
    linear = coefficients(model) is not None
    outcomes = []
    for k, fit in enumerate(fits):
        member = _Member(model, {name: p[k] for name, p in stack.items()}, X, found[k])
        try:
            number = score(work.scorer, wrap(member, work.reading), X, y)
        except Exception as error:
            raise failed(f"the fit with {fit}", error) from error
        weights = coefficients(member.module()) if linear else None
        outcomes.append(
            Outcome(
                fit.candidate, fit.fold, number, seconds, nonzero[k] if chosen else None, weights
            )
        )
    return outcomes


class _Member:
    """One of the stacked models as a predictor; what it says of the test rows is known already."""

    def __init__(self, model: nn.Module, parameters: Tensors, X: Any, output: Any) -> None:
        self._model, self._parameters, self._X, self._output = model, parameters, X, output

    def __call__(self, X: Any) -> Any:
        if X is self._X:
            return self._output
        return functional_call(self._model, self._parameters, (as_input(self._model, X),))

    def module(self) -> nn.Module:
        """Return it as a module of its own."""
        model = copy.deepcopy(self._model)
        model.load_state_dict(self._parameters, strict=False)
        return model
