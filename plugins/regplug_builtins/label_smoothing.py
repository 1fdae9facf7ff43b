"""A schedule of label smoothing: that of the criterion that the loop has anyway."""

import gc
from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from regplug import Patterns, SessionView, hookimpl
from regplug.errors import SelectionError, SpecError
from regplug.schedules import ScheduleLike
from regplug_builtins._rates import Followed, ScheduledRates, Target, is_rate
from regplug_builtins._samples import with_criterion

__all__ = ["LabelSmoothing"]

_ATTRIBUTE = "label_smoothing"


class LabelSmoothing(ScheduledRates):
    r"""Sets the label smoothing ε of a criterion to a schedule, at each step.

    With ε a target of one class is (1 − ε) for it and ε/C for each of C classes. The loop stays as
    it is: the criterion is a module that has a float ``label_smoothing``, as
    ``nn.CrossEntropyLoss`` does, found in this order:

    1. the one that is given, ``LabelSmoothing(0.1, criterion=criterion)``;
    2. those that are modules of the model, as a Lightning module's own;
    3. the only one that the program has at attach, wherever it is. Where there are several (one
       for validation, say), that is an error, and ``criterion=`` says which.

    The ε for a step holds from the end of the step before it, also where the loop uses the same
    criterion to validate: give validation one of its own. Detaching restores the criterion's own.
    ``F.cross_entropy(…, label_smoothing=0.1)`` with a number in the loop is out of reach.

    An ε that moves is a 0-d tensor in the float's place: where ``torch.compile`` compiles the
    criterion, it compiles once for the whole schedule, in one graph. Other code can do with it what
    it does with a float.

    Args:
        smoothing: ε, within [0, 1], or a schedule of it over the step count.
        criterion: the module; None to find it.
        where: which of several in the model: glob patterns on the module's qualified name.
        name: the key of its metrics.

    Raises:
        SpecError: ``smoothing`` leaves [0, 1], or ``criterion`` has no ``label_smoothing``.
        SelectionError: no criterion is found, or several are.

    References:
        Christian Szegedy, Vincent Vanhoucke, Sergey Ioffe, Jonathon Shlens, Zbigniew Wojna,
        "Rethinking the Inception Architecture for Computer Vision", 2016, section 7,
        https://arxiv.org/abs/1512.00567.

    >>> import regplug, torch
    >>> from regplug.schedules import linear
    >>> model, criterion = torch.nn.Linear(4, 3), torch.nn.CrossEntropyLoss(label_smoothing=0.3)
    >>> smoothing = LabelSmoothing(linear(0.1, 0, steps=100), criterion=criterion)
    >>> session = regplug.attach(model, plugins=[smoothing])
    >>> float(criterion.label_smoothing)
    0.1
    >>> session.detach(); criterion.label_smoothing
    0.3
    """

    kind = "label smoothing"
    shapes_loss = True
    smoothing = Followed(low=0.0, high=1.0, off=None)
    exam_model = staticmethod(with_criterion)

    def __init__(
        self,
        smoothing: ScheduleLike,
        *,
        criterion: nn.Module | None = None,
        where: str | Sequence[str] = "*",
        name: str | None = None,
    ) -> None:
        if criterion is not None and not _has_it(criterion):
            raise SpecError(
                f"criterion must be a module with a float {_ATTRIBUTE}, as nn.CrossEntropyLoss is, "
                f"got {criterion!r}"
            )
        self.smoothing = smoothing
        self.criterion = criterion
        self.where = Patterns(where).where
        self.name = name

    def find(self, model: nn.Module) -> Iterator[Target]:
        """Yield the criterion's: given, in the model, or the only one that there is."""
        if self.criterion is not None:
            yield _target(type(self.criterion).__name__, self.criterion)
            return
        own = [(path, module) for path, module in model.named_modules() if _has_it(module)]
        if not own:
            own = [(type(module).__name__, module) for module in _living()]
            if len(own) > 1:
                which = ", ".join(repr(module) for _, module in own[:6])
                raise SelectionError(
                    f"{self.name}: the program has {len(own)} criterions with a {_ATTRIBUTE} "
                    f"({which}): say which, LabelSmoothing(…, criterion=criterion) of "
                    "regplug_builtins"
                )
        if not own:
            raise SelectionError(
                f"{self.name}: there is no module with a float {_ATTRIBUTE}, as "
                "nn.CrossEntropyLoss is, in the model or elsewhere: make the criterion before "
                "attach(…), as a module (a number in a call of F.cross_entropy is out of reach)"
            )
        for path, module in own:
            yield _target(path, module)

    def rate_at(self, step: int, index: int, target: Target) -> float:
        """Return the schedule's value."""
        return type(self).smoothing.at(self, step)

    def together(self, index: int, target: Target) -> object:
        """Return that all are equal."""
        return None

    @hookimpl
    def on_metrics(self, session: SessionView) -> Mapping[str, float]:
        """Return ε."""
        return {"smoothing": self.smoothing, **self.figures_by_pattern()}


def _has_it(module: object) -> bool:
    # Not isinstance, which asks the proxies of others for what they stand for.
    return issubclass(type(module), nn.Module) and is_rate(getattr(module, _ATTRIBUTE, None))


def _living() -> list[nn.Module]:
    """Return all criterions of the program. Looked for once, at attach."""
    found = [thing for thing in gc.get_objects() if _has_it(thing)]
    if len(found) > 1:  # of which some may be dead, as those of a cell that was run before
        found.clear()
        gc.collect()
        found = [thing for thing in gc.get_objects() if _has_it(thing)]
    return found


def _target(path: str, module: nn.Module) -> Target:
    name = f"{path}.{_ATTRIBUTE}" if path else _ATTRIBUTE
    return Target(module, _ATTRIBUTE, name, getattr(module, _ATTRIBUTE))
