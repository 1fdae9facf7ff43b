"""Plugins that act on selected parameters: :class:`Selective`."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from regplug.backend.names import named_parameters
from regplug.errors import NeverSetError
from regplug.plugin import Plugin, Scheduled
from regplug.selection.coverage import Coverage
from regplug.selection.parts import Keys, Narrowing, Parts, Strengths
from regplug.selection.where import Selection, Where, matches
from regplug.view import SessionView, Update

__all__ = ["Selective"]


class Selective(Plugin):
    """Base of the plugins that act on selected parameters.

    A subclass sets ``self.where``, and goes through :meth:`by_part` in its hooks: what it covers of
    what takes part in the step, with each scheduled attribute as it is for those weights.

    >>> import regplug, torch
    >>> class Shrink(regplug.Selective):
    ...     "After each step w ← (1 − rate)·w."
    ...     rate = regplug.Scheduled()
    ...     by_pattern = True
    ...     def __init__(self, rate, *, where="weights", name=None):
    ...         self.rate, self.where, self.name = rate, where, name
    ...     @regplug.hookimpl
    ...     def after_step(self, session):
    ...         for _, weights, _ in self.by_part(session):
    ...             for w in weights:
    ...                 regplug.local(w).mul_(1 - self.rate)
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> session = regplug.attach(model, optimizer, [Shrink({"0.*": 0.5, "1.*": 0.1})])
    >>> session.plugins[0].covers(session)
    (2, 8)
    """

    _selection = Selection()
    _strengths: Strengths | None = None

    @property
    def where(self) -> Where:
        """The selection as it was given."""
        return self._selection.where

    @where.setter
    def where(self, where: Where) -> None:
        self._selection = Selection(where, self._narrowing())

    # --- strengths by pattern -------------------------------------------------------------

    def changed_patterns(self) -> None:
        """Cover what has a strength, and nothing else."""
        self._selection = Selection(self.where, self._narrowing())

    def _narrowing(self) -> Narrowing | None:
        mappings = self.mappings
        if not mappings:
            return None
        keys = {name: Keys(name, mapping.entries) for name, mapping in mappings.items()}
        # Where it has no strength 0, as the bound of a constraint, what has none is left alone.
        needed = [keys[name] for name in keys if _scheduled(self, name).off != 0]
        try:
            others = [name for name in self.strengths() if name not in keys]
        except NeverSetError:  # it is being made, and asks again
            others = []
        enough = any(_scheduled(self, name).off == 0 for name in others)
        return Narrowing(list(keys.values()), needed, enough=enough)

    def strengths_by_part(self, session: SessionView) -> Strengths:
        """Return the strengths of the parts of what is covered, where they are by pattern."""
        coverage = session.coverage(self._selection)
        if self._strengths is None or self._strengths.of is not coverage:
            covered = [(e.named, e.parameter) for e in coverage if e.named is not None]
            order = [named.name for named in named_parameters(session.model)]
            mappings = self.mappings
            parts = Parts(mappings, covered, order, matches)
            self._strengths = Strengths(parts, mappings, partial(getattr, self), coverage)
        return self._strengths

    def settle_patterns(self, session: SessionView) -> None:
        """Find out what strengths by pattern come to in a session's model.

        Raises:
            SpecError: a strength leaves its range in some layer.
        """
        if self._mapped:
            self.strengths_by_part(session)

    def by_part(self, session: SessionView) -> Iterator[Update]:
        """Yield what takes part in this step, as ``session.updates`` does, part by part.

        In the body of the loop each scheduled attribute is read as it is for those weights.
        """
        updates = session.updates(self._selection)
        if not self._mapped:
            yield from updates
            return
        strengths = self.strengths_by_part(session)
        for index, weights, gradients in updates:
            for part, rows in strengths.parts.rows(weights).items():
                with strengths.at(part):
                    yield index, [weights[row] for row in rows], [gradients[row] for row in rows]

    def is_uniform(self, session: SessionView, weights: Sequence[Any]) -> bool:
        """Return whether covered weights have the same strengths."""
        return not self._mapped or len(self.strengths_by_part(session).parts.rows(weights)) < 2

    def figures_by_part(self, session: SessionView) -> Mapping[str, float]:
        """Return each strength by pattern under its name: ``strength/encoder.*``."""
        if not self._mapped:
            return {}
        strengths = self.strengths_by_part(session)
        found = {}
        for part, labels in enumerate(strengths.parts.labels):
            with strengths.at(part):
                for name, label in labels.items():
                    found[f"{name}/{label}"] = getattr(self, name)
        return found

    # --- what a session asks --------------------------------------------------------------

    def acted_on(self, session: SessionView) -> Coverage:
        """Return what is told to be covered: the selection, unless a subclass acts on less."""
        return session.coverage(self._selection)

    def covers(self, session: SessionView) -> tuple[int, int] | None:
        """Return how many tensors and weights are covered."""
        coverage = self.acted_on(session)
        return len(coverage.trainable), coverage.weights

    def covered(self, session: SessionView) -> Sequence[str]:
        """Return the names of all that is covered, or may be once it has a shape."""
        return self.acted_on(session).names

    def notes(self, session: SessionView) -> Sequence[str]:
        """Return what is covered if it is little, what is special, and strengths by pattern."""
        from regplug.selection.in_use import notes

        by_part = [f"{name} {value:g}" for name, value in self.figures_by_part(session).items()]
        found = notes(self.acted_on(session))
        return [*found, "by pattern: " + ", ".join(by_part)] if by_part else found

    def agreement(self, session: SessionView) -> Mapping[str, Any]:
        """Return the settings, and what they come to in this model."""
        return {**super().agreement(session), "covers": self.covered(session)}


def _scheduled(plugin: Plugin, name: str) -> Scheduled:
    found = getattr(type(plugin), name)
    assert isinstance(found, Scheduled)
    return found
