"""Recipe: a training loop written as data, so that many fits can be trained as one."""

import functools
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

import regplug
from regplug import Plugin
from regplug.errors import SpecError
from regplug.tune.data import as_numpy, length, rows
from regplug.tune.predictor import as_input
from regplug.tune.seeding import seeded
from regplug.tune.targets import Form, form_of, numbers

__all__ = ["Recipe"]


class Recipe:
    r"""A training loop written as data.

    It is a loop like any other, to be given to :class:`StrengthCV` or called as
    ``recipe(X, y, plugins)``. As data, though, all folds and strengths of a search can be
    trained at once: M models become one whose parameters have a leading dimension of M, and one
    call of ``loss.backward()`` and ``optimizer.step()`` serves them all.
    Penalties act through the same plugin formulas, each model with its own strength. Scores agree
    with training them one by one to rounding.

    What can't be trained at once is trained one by one, with a warning that says why: models whose
    ``forward`` draws random numbers (dropout) or changes buffers (batch norm), plugins that are
    more than a penalty, and optimizers that do not act element by element (those that do: SGD,
    Adam, AdamW, Adamax, NAdam, RAdam, RMSprop, Rprop, Adagrad, Adadelta, ASGD).

    Args:
        build: makes a new model, ``() -> nn.Module``.
        loss: ``(output, target) -> 0-d tensor``, for one batch; ``nn.MSELoss()``, say, a function
            of ``torch.nn.functional``, or your own. It decides the target's type and shape: whole
            numbers become floats for a loss of values, ``(n,)`` becomes ``(n, 1)`` where the output
            is so, and the labels of two classes 0 and 1 for ``nn.BCEWithLogitsLoss()``, −1 and 1
            for ``nn.SoftMarginLoss()``. What would broadcast is refused.
        optimizer: makes the optimizer, ``(parameters) -> torch.optim.Optimizer``;
            ``functools.partial(torch.optim.SGD, lr=0.1)``, say.
        epochs: how often the loop goes over the data, at least 1.
        batch_size: rows in a batch, of which the last is smaller if they don't come out even;
            shuffled anew in each epoch. None takes all rows at once.
        seed: seeds the weights, the batches, and whatever the model draws.

    Raises:
        SpecError: an argument is no callable, or no whole number of at least 1.

    >>> import functools, torch
    >>> from regplug.tune import Recipe
    >>> recipe = Recipe(
    ...     build=lambda: torch.nn.Linear(2, 1, bias=False),
    ...     loss=torch.nn.MSELoss(),
    ...     optimizer=functools.partial(torch.optim.SGD, lr=0.5),
    ...     epochs=50,
    ... )
    >>> X = torch.eye(2).repeat(4, 1)
    >>> model = recipe(X, X[:, 0], ["l1(0.1, delivery='proximal')"])
    >>> model.weight.count_nonzero()
    tensor(1)
    """

    def __init__(
        self,
        build: Callable[[], nn.Module],
        loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        optimizer: Callable[[Iterable[torch.Tensor]], Optimizer],
        epochs: int,
        batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        for name, call in (("build", build), ("loss", loss), ("optimizer", optimizer)):
            if not callable(call):
                raise SpecError(f"{name} must be a callable, got {call!r}")
        for name, number in (("epochs", epochs), ("batch_size", batch_size)):
            if (name, number) != ("batch_size", None) and not _is_count(number):
                raise SpecError(f"{name} must be a whole number of at least 1, got {number!r}")
        self.build = build
        self.loss = loss
        self.optimizer = optimizer
        self.epochs = epochs
        self.batch_size = batch_size
        self.seed = seed

    def __repr__(self) -> str:
        return (
            f"Recipe(build={_shown(self.build)}, loss={_shown(self.loss)}, "
            f"optimizer={_shown(self.optimizer)}, epochs={self.epochs}, "
            f"batch_size={self.batch_size}, seed={self.seed})"
        )

    def __call__(self, X: Any, y: Any, plugins: Sequence[str | Plugin]) -> nn.Module:
        """Train one model and return it, in evaluation mode.

        Args:
            X: shape ``(n, …)``, an array, a tensor or a data frame.
            y: shape ``(n,)`` or ``(n, outputs)``.
            plugins: what :func:`regplug.attach` takes.

        Raises:
            SpecError: ``y`` is nothing that the loss can be trained on, or ``build`` or
                ``optimizer`` returned something else.
            RegplugError: a plugin raised.
        """
        with seeded(self.seed):
            model, optimizer = self.start()
            inputs = as_input(model, X)
            target, labels = numbers(y, like(model))
            taken: torch.Tensor | None = None
            needs_closure = _needs_closure(optimizer)
            with regplug.attach(model, optimizer, plugins) as session:
                for index in self.batches(len(inputs)):

                    def closure(index: Any = index) -> torch.Tensor:
                        nonlocal taken
                        optimizer.zero_grad()
                        output = model(inputs[index])
                        if taken is None:
                            words = labels is not None
                            form = form_of(self.loss, output, target, index, words=words)
                            taken = form.of(target)
                        loss = session.loss(self.loss(output, taken[index]))
                        loss.backward()
                        return loss

                    if needs_closure:
                        optimizer.step(closure)  # type: ignore[arg-type]
                    else:
                        closure()
                        optimizer.step()
        return model.eval()

    def start(self) -> tuple[nn.Module, Optimizer]:
        """Return a new model in training mode and its optimizer.

        Raises:
            SpecError: ``build`` returned no module, or ``optimizer`` no optimizer.
        """
        with seeded(self.seed):
            model = self.build()
        if not isinstance(model, nn.Module):
            raise SpecError(f"build must return a torch.nn.Module, got {model!r}")
        optimizer = self.optimizer(model.parameters())
        if not isinstance(optimizer, Optimizer):
            raise SpecError(f"optimizer must return a torch.optim.Optimizer, got {optimizer!r}")
        return model.train(), optimizer

    def form(self, X: Any, y: Any) -> tuple[Form | None, Any]:
        """Return how the loss takes ``y``, by the outputs of a new model, and ``y`` as numbers.

        None if the model or the loss fails: a fit will say how.

        Raises:
            SpecError: the loss can't be trained on ``y``.
        """
        index = np.arange(min(32, length(X)))
        with seeded(self.seed), torch.no_grad():
            try:
                model = self.start()[0].eval()
                output = model(as_input(model, rows(X, index)))
            except Exception:
                return None, y
            target, labels = numbers(y, like(model))
            try:
                found = form_of(
                    self.loss, output, target, slice(len(index)), words=labels is not None
                )
            except SpecError:
                raise
            except Exception:
                return None, y
        if labels is None and found.labels is None:
            return found, y
        return found, as_numpy(found.encoded(target))

    def batches(self, n: int) -> Iterator[Any]:
        """Yield the rows of every batch of all epochs: index tensors, or a slice for all rows."""
        if self.batch_size is None:
            yield from itertools.repeat(slice(None), self.epochs)
            return
        # On the CPU, whatever the default device is: the batches are the same everywhere.
        generator = torch.Generator("cpu").manual_seed(self.seed)
        for _ in range(self.epochs):
            yield from torch.randperm(n, generator=generator, device="cpu").split(self.batch_size)


def like(model: nn.Module) -> torch.Tensor:
    """Return a tensor of the device and the type that a model's targets are to have."""
    return next(model.parameters(), torch.zeros(0, device="cpu"))


def _is_count(number: object) -> bool:
    whole = isinstance(number, int | np.integer) and not isinstance(number, bool)
    return whole and bool(number >= 1)  # type: ignore[operator]


def _needs_closure(optimizer: Optimizer) -> bool:
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def _shown(call: Any) -> str:
    """Return a name that is the same in every process."""
    if isinstance(call, functools.partial):
        arguments = [repr(a) for a in call.args]
        arguments += [f"{name}={value!r}" for name, value in call.keywords.items()]
        return f"partial({', '.join([_shown(call.func), *arguments])})"
    if isinstance(call, nn.Module):
        return repr(call)
    named = call if hasattr(call, "__qualname__") else type(call)
    return f"{named.__module__}.{named.__qualname__}"
