"""Which parameters: ``where=`` turned into a set of named parameters of one model.

>>> import torch
>>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2))
>>> [named.name for named in Selection("weights").of(model)]
['0.weight', '2.weight']
>>> [named.name for named in Selection(["all", "!*.bias"]).of(model)]
['0.weight', '1.weight', '2.weight']
"""

from collections.abc import Sequence
from functools import partial
from typing import TypeAlias

from torch import nn
from torch.nn.parameter import is_lazy

from regplug.backend.names import Named, clean_name, is_normalization, named_parameters
from regplug.backend.words import listed, nearest, shown
from regplug.errors import SelectionError, UnsupportedError
from regplug.selection.parts import Narrowing
from regplug.selection.patterns import NO, OPEN, YES, Part, Patterns, Predicate, globs

__all__ = ["Named", "Selection", "Where", "clean_name", "matches", "named_parameters"]

Where: TypeAlias = str | Predicate | Sequence[str | Predicate]

_ALLOWED = (
    "'weights', 'all', a glob pattern, '!pattern', 'a & b' of these, a list of all that or a "
    "callable (name, parameter, module) -> bool"
)


class Selection:
    """``where=``, checked when it is made and applied to a model as often as is wanted.

    Args:
        where: ``"weights"`` (trainable, floating, two or more dimensions, not in a normalization
            layer), ``"all"`` (trainable), a glob pattern on qualified names (``"encoder.*"``),
            ``"!pattern"`` to exclude, a callable ``(name, parameter, module) -> bool``, or
            ``"weights & encoder.*"``, which narrows: what matches all of these, and none of those
            with a ``!`` before them. A list of all that is a union: ``["weights", "encoder.*"]``
            covers all weights, and the encoder's biases too. In a list an exclusion always wins;
            a list of exclusions alone starts from ``"weights"``.
        narrowing: what strengths by pattern take away from it.

    Raises:
        SelectionError: ``where`` is none of these.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    >>> [named.name for named in Selection("weights & 1.*").of(model)]
    ['1.weight']
    >>> [named.name for named in Selection(["weights", "1.*"]).of(model)]
    ['0.weight', '1.weight', '1.bias']
    """

    def __init__(self, where: Where = "weights", narrowing: Narrowing | None = None) -> None:
        self._patterns = Patterns(where, "weights", allowed=_ALLOWED, predicates=True)
        self._narrowing = narrowing
        self.where = where

    def __repr__(self) -> str:
        return f"Selection({self.where!r})"

    def of(self, model: nn.Module) -> list[Named]:
        """Return the parameters of ``model`` that are selected; frozen ones are kept.

        They are left out at each step instead, so that a layer may thaw in the course of training.

        Raises:
            SelectionError: nothing trainable is selected, or a pattern matches no name at all;
                the message shows the nearest names.
            UnsupportedError: a complex parameter is asked for by ``"all"``, by name or callable.
        """
        return self.sorted(model)[0]

    def sorted(self, model: nn.Module) -> tuple[list[Named], list[Named]]:
        """Return the parameters that are selected, and the lazy ones that may be.

        A lazy parameter (of ``nn.LazyLinear`` and its like) is selected, or not, once it has a
        shape.

        Raises:
            SelectionError: nothing trainable is selected, nor may ever be; see :meth:`of`.
            UnsupportedError: see :meth:`of`.
        """
        known = named_parameters(model)
        for part in self._patterns.include:
            self._check_matches(part, known)
        taken = [n for n in known if self._patterns.decide(partial(matches, n)) != NO]
        if self._narrowing is not None:
            taken = self._narrowing.of(known, taken, self.where, matches)
        lazy = [named for named in taken if is_lazy(named.parameter)]
        chosen = [named for named in taken if not is_lazy(named.parameter)]
        for named in chosen:
            if named.parameter.is_complex():
                raise UnsupportedError(
                    f"{named.name} is {named.parameter.dtype}, and penalties are defined here for "
                    f"real weights only: exclude it with where=[…, '!{named.name}']"
                )
        chosen = [named for named in chosen if named.parameter.is_floating_point()]
        if not lazy and not any(named.parameter.requires_grad for named in chosen):
            frozen = f"; {len(chosen)} frozen ones match" if chosen else ""
            raise SelectionError(
                f"where={self.where!r} selects no trainable parameter{frozen}; "
                f"the model has {shown(known)}"
            )
        return chosen, lazy

    def _check_matches(self, part: Part, known: list[Named]) -> None:
        """Refuse a part that takes nothing, though it names what it takes: it is mistyped."""
        if not part.patterns or any(part.takes(partial(matches, named)) for named in known):
            return
        names = [name for named in known for name in named.names]
        if not names:
            raise SelectionError(
                f"where={self.where!r} matches nothing: the model has no parameters"
            )
        for pattern in part.patterns:
            matched = [n for n in known if matches(n, pattern)]
            if matched:
                continue
            if pattern == "weights":
                raise SelectionError(
                    "where='weights' matches nothing: no parameter has two or more dimensions "
                    f"outside normalization layers; the model has {listed(names)}"
                )
            close = ", ".join(nearest(pattern, names))
            raise SelectionError(
                f"where={self.where!r}: {pattern!r} matches no parameter; the nearest names are "
                f"{close}"
            )
        last = part.patterns[-1]
        alone = [named.name for named in known if matches(named, last)]
        raise SelectionError(
            f"where={self.where!r}: {part.text!r} matches no parameter, though each of its parts "
            f"does: {last!r} alone is {listed(alone)}"
        )


def matches(named: Named, pattern: str | Predicate) -> float:
    """Return YES, NO or OPEN: whether a parameter matches one pattern of ``where=``."""
    if not isinstance(pattern, str):
        if is_lazy(named.parameter):
            return OPEN  # it may well ask for the shape
        pairs = zip(named.names, named.modules, strict=True)
        return YES if any(pattern(n, named.parameter, m) for n, m in pairs) else NO
    if pattern == "all":
        return YES
    return _is_weight(named) if pattern == "weights" else globs(pattern, named.names)


def _is_weight(named: Named) -> float:
    """Two or more dimensions, floating, and no normalization layer: judged by type and shape."""
    parameter = named.parameter
    lazy = is_lazy(parameter)
    if not parameter.is_floating_point() or not (lazy or parameter.ndim >= 2):
        return NO
    if any(is_normalization(module) for module in named.modules):
        return NO
    return OPEN if lazy else YES
