"""Dropout scheduling: the rate of every dropout of a model, over time."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from regplug import Plugin, Scheduled, Session, hookimpl
from regplug.errors import SelectionError, SpecError
from regplug.schedules import ScheduleLike

__all__ = ["Dropout"]

# Rates that models keep as plain floats: attention_dropout, dropout_p, attn_drop_prob, drop_rate.
_RATE_NAME = re.compile(
    r"(?:\w+_)?drop(?:out)?(?:_(?:p|prob|rate|ratio))?|(?:\w+_)?(?:p|p_)?dropout_p"
)


@dataclass
class Target:
    """One rate: an attribute of a module, with the value that it had."""

    module: nn.Module
    attribute: str
    name: str
    own: float


class Dropout(Plugin):
    r"""Sets every dropout rate of the model to a schedule, at each step.

    Found by type: ``nn.Dropout`` and its kin, ``AlphaDropout``, ``MultiheadAttention``, ``RNN``,
    ``LSTM``, ``GRU``; and by name the float attributes in which models keep rates of their own,
    as ``attention_dropout``, ``dropout_p`` or ``drop_prob``. ``session.describe()`` lists them.
    The rate for a step holds from the end of the step before it, so evaluation in between is
    untouched (dropout is off in ``model.eval()``). Detaching restores each module's own rate.

    The shapes of the literature are one-line schedules:

    - early dropout, against underfitting: ``dropout(linear(0.1, 0, steps=1000))`` (Liu et al.);
    - late dropout, against overfitting: ``dropout(piecewise({0: 0, 1000: 0.1}))`` (Liu et al.);
    - curriculum dropout, p(t) = p·(1 − exp(−γt)), from no noise to p:
      ``dropout(linear(0, 0.5, steps=1000))`` comes near it, and any callable gives it exactly:
      ``Dropout(lambda t: 0.5 * (1 - math.exp(-0.01 * t)))`` (Morerio et al.);
    - annealed dropout, from p to nothing: ``dropout(linear(0.5, 0, steps=1000))`` (Rennie et al.).

    Args:
        rate: the probability of dropping, within [0, 1], or a schedule of it over the step count.
            With ``relative=True`` it is a factor ≥ 0 instead.
        where: which of them: glob patterns on the module's qualified name or on that of the
            attribute (``"encoder.*"``, ``"*.attn.dropout"``), ``"!pattern"`` to exclude, a list.
        relative: multiply each module's own rate by the schedule, so that rates keep their ratio.
        name: the key of its metrics.

    Raises:
        SpecError: ``rate`` leaves [0, 1].
        SelectionError: there is no dropout in the model, or ``where`` matches none of it.

    References:
        Nitish Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from
        Overfitting", 2014, https://jmlr.org/papers/v15/srivastava14a.html.
        Zhuang Liu et al., "Dropout Reduces Underfitting", 2023, https://arxiv.org/abs/2303.01500.
        Pietro Morerio et al., "Curriculum Dropout", 2017, https://arxiv.org/abs/1703.06229.
        Steven J. Rennie, Vaibhava Goel, Samuel Thomas, "Annealed Dropout Training of Deep
        Networks", 2014, https://doi.org/10.1109/SLT.2014.7078567.

    >>> import regplug, torch
    >>> from regplug.schedules import linear
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.3))
    >>> session = regplug.attach(model, plugins=[Dropout(linear(0.5, 0.1, steps=100))])
    >>> float(model[1].p)
    0.5
    >>> session.detach(); model[1].p
    0.3
    """

    changes_weights = False
    rate = Scheduled(low=0.0, high=1.0)
    factor = Scheduled()

    def __init__(
        self,
        rate: ScheduleLike,
        *,
        where: str | Sequence[str] = "*",
        relative: bool = False,
        name: str | None = None,
    ) -> None:
        self.relative = relative
        if relative:
            self.factor = rate
        else:
            self.rate = rate
        self.where = [where] if isinstance(where, str) else list(where)
        if not self.where or not all(isinstance(p, str) and p.strip("! ") for p in self.where):
            raise SelectionError(f"where must be glob patterns on module names, got {where!r}")
        self.name = name
        self._targets: list[Target] = []

    @hookimpl
    def on_attach(self, session: Session) -> None:
        """Find the rates, remember them, and set those of the first step."""
        found = list(_rates(session.model))
        self._targets = [target for target in found if self._takes(target)]
        if not self._targets:
            have = ", ".join(target.name for target in found[:6]) or "none at all"
            raise SelectionError(
                f"{self.name}: where={self.where!r} matches no dropout; the model has {have}"
            )
        self._set(session.steps)

    def _takes(self, target: Target) -> bool:
        names = (target.name, target.name.rpartition(".")[0])
        exclude = [pattern[1:] for pattern in self.where if pattern.startswith("!")]
        include = [pattern for pattern in self.where if not pattern.startswith("!")] or ["*"]
        return any(fnmatchcase(n, p) for n in names for p in include) and not any(
            fnmatchcase(n, p) for n in names for p in exclude
        )

    def _set(self, step: int) -> None:
        scheduled = (type(self).factor if self.relative else type(self).rate).at(self, step)
        for target in self._targets:
            rate = scheduled * target.own if self.relative else scheduled
            if not 0 <= rate <= 1:
                raise SpecError(
                    f"{self.name}: {target.name} would get the rate {rate:g}, which is "
                    f"{scheduled:g}·{target.own:g}"
                )
            setattr(target.module, target.attribute, rate)

    @hookimpl
    def after_step(self, session: Session) -> None:
        """Set the rates of the next step."""
        self._set(session.steps + 1)

    @hookimpl
    def on_load_state(self, session: Session) -> None:
        """Set the rates of the step that the session goes on from."""
        self._set(session.steps)

    @hookimpl
    def on_detach(self, session: Session) -> None:
        """Give each module its own rate back."""
        for target in self._targets:
            setattr(target.module, target.attribute, target.own)
        self._targets = []

    @hookimpl
    def on_metrics(self, session: Session) -> Mapping[str, float]:
        """Return the rate, or with ``relative`` the mean rate of the modules."""
        if not self.relative:
            return {"rate": self.rate}
        own = sum(target.own for target in self._targets) / max(len(self._targets), 1)
        return {"rate": self.factor * own, "factor": self.factor}

    def covers(self, session: Session) -> None:
        """Dropout covers modules, not weights."""

    def acts(self, session: Session) -> str:
        """Return how many rates are set."""
        return f"{len(self._targets)} dropout rates, after_step"

    def notes(self, session: Session) -> list[str]:
        """Return the rates that are set."""
        names = [f"{target.name} (own {target.own:g})" for target in self._targets]
        return ["sets " + ", ".join(names)] if names else []


def _rates(model: nn.Module) -> Iterator[Target]:
    for path, module in model.named_modules():
        for attribute in _attributes(module):
            own = getattr(module, attribute)
            name = f"{path}.{attribute}" if path else attribute
            yield Target(module, attribute, name, own)


def _attributes(module: nn.Module) -> Iterator[str]:
    if isinstance(module, _DropoutNd):
        yield "p"
    elif isinstance(module, nn.MultiheadAttention | nn.RNNBase):
        yield "dropout"
    else:
        for attribute, value in vars(module).items():
            named = _RATE_NAME.fullmatch(attribute) or (
                attribute == "p" and "drop" in type(module).__name__.lower()
            )
            if named and isinstance(value, float) and 0 <= value <= 1:
                yield attribute
