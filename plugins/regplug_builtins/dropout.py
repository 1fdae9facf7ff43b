"""Dropout scheduling: the rate of every dropout of a model, over time."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

from torch import nn

from regplug import Patterns, SessionView, hookimpl
from regplug.errors import SpecError
from regplug.schedules import Schedule, ScheduleLike
from regplug_builtins._private import is_dropout
from regplug_builtins._rates import Followed, ScheduledRates, Target, is_rate
from regplug_builtins.drop_path import DropPath, is_stochastic_depth

__all__ = ["Dropout"]

# Rates that models keep as plain floats: attention_dropout, dropout_p, attn_drop_prob, drop_rate.
_RATE_NAME = re.compile(
    r"(?:\w+_)?drop(?:out)?(?:_(?:p|prob|rate|ratio))?|(?:\w+_)?(?:p|p_)?dropout_p"
)


class Dropout(ScheduledRates):
    r"""Sets every dropout rate of the model to a schedule, at each step.

    Found by type: ``nn.Dropout`` and its kin, ``AlphaDropout``, ``MultiheadAttention``, ``RNN``,
    ``LSTM``, ``GRU``; and by name the float attributes in which models keep rates of their own,
    as ``attention_dropout``, ``dropout_p`` or ``drop_prob``. ``session.describe()`` lists them, and
    says which have no effect (a recurrent layer drops between the layers of a stack, not in one
    that stands alone). Stochastic depth (``DropPath`` and its kin) is left to ``drop_path`` where
    that is attached beside it.
    The rate for a step holds from the end of the step before it, so evaluation in between is
    untouched (dropout is off in ``model.eval()``). Detaching restores each module's own rate.

    A rate that moves is a 0-d tensor in the float's place, so that ``torch.compile`` compiles
    once for the whole schedule, in one graph: ``nn.Dropout`` and its kin, and ``F.dropout`` and
    ``F.scaled_dot_product_attention`` that read an attribute. The latter makes its attention
    weights in full then, for the fused kernels want a constant. ``MultiheadAttention`` breaks the
    graph and runs eagerly; torch runs ``LSTM`` and ``GRU`` eagerly anyway; ``session.describe()``
    marks both.
    Copies and pickles of the model hold plain floats, and so are what to give ``torch.jit.script``.
    Other code can do with such a rate what it does with a float; ``json`` wants ``float(rate)``.

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

    kind = "dropout rate"
    rate = Followed(low=0.0, high=1.0)
    factor = Followed()

    def __init__(
        self,
        rate: ScheduleLike,
        *,
        where: str | Sequence[str] = "*",
        relative: bool = False,
        name: str | None = None,
    ) -> None:
        if not isinstance(relative, bool):
            raise SpecError(f"relative must be True or False, got {relative!r}")
        self.relative = relative
        if relative:
            self.factor = rate
        else:
            self.rate = rate
        self.where = Patterns(where).where
        self.name = name

    def find(self, model: nn.Module) -> Iterator[Target]:
        """Yield every dropout rate of the model."""
        for path, module in model.named_modules():
            for attribute in _attributes(module):
                rate = getattr(module, attribute)
                yield Target(module, attribute, f"{path}.{attribute}" if path else attribute, rate)

    def leaves(self, session: SessionView, target: Target) -> bool:
        """Leave stochastic depth to a :class:`DropPath` of the same session."""
        return is_stochastic_depth(target.module) and any(
            isinstance(plugin, DropPath) for plugin in session.plugins
        )

    def ignored(self, target: Target) -> str | None:
        """Say it of recurrent layers that have nothing to drop, and of a multiple of 0."""
        layer = target.module
        own_forward = type(layer).forward in (nn.RNN.forward, nn.LSTM.forward, nn.GRU.forward)
        if isinstance(layer, nn.RNNBase) and layer.num_layers == 1 and own_forward:
            return (
                "(torch drops between the layers of a stack, and this has one: put an nn.Dropout "
                "after it, or make it with num_layers=2)"
            )
        if self.relative and target.own == 0:
            return "(relative=True multiplies its own rate, which is 0)"
        return None

    def begin(self, targets: Sequence[Target]) -> None:
        """Refuse a factor that would carry a rate above 1 at some step, if that can be known."""
        schedule = type(self).factor.schedule(self) if self.relative else None
        if not isinstance(schedule, Schedule):
            return
        with suppress(NotImplementedError):
            factor = schedule.bounds()[1]
            for target in targets:
                if factor * target.own > 1:
                    raise SpecError(
                        f"{self.name}: {target.name} would get rate {factor * target.own:g}, "
                        f"which is {factor:g}·{target.own:g}"
                    )

    def rate_at(self, step: int, index: int, target: Target) -> float:
        """Return the schedule's value, multiplied by the module's own rate if it is relative."""
        if self.relative:
            return type(self).factor.at(self, step) * target.own
        return type(self).rate.at(self, step)

    def together(self, index: int, target: Target) -> object:
        """Return what tells rates apart: the modules' own, if it is relative."""
        return target.own if self.relative else None

    @hookimpl
    def on_metrics(self, session: SessionView) -> Mapping[str, float]:
        """Return the rate, or with ``relative`` the mean rate of the modules."""
        if not self.relative:
            return {"rate": self.rate, **self.figures_by_pattern()}
        rates = [self._checked(self._step, i, target) for i, target in enumerate(self._targets)]
        mean = sum(rates) / max(len(rates), 1)
        return {"rate": mean, "factor": self.factor, **self.figures_by_pattern()}


def _attributes(module: nn.Module) -> Iterator[str]:
    if is_dropout(module):
        yield "p"
    elif isinstance(module, nn.MultiheadAttention | nn.RNNBase):
        yield "dropout"
    else:
        for attribute, value in vars(module).items():
            named = _RATE_NAME.fullmatch(attribute) or (
                attribute == "p" and "drop" in type(module).__name__.lower()
            )
            if named and is_rate(value):
                yield attribute
