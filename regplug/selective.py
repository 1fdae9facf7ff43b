"""Plugins that act on selected parameters: :class:`Selective`."""

from collections.abc import Mapping, Sequence
from typing import Any

from regplug.plugin import Plugin
from regplug.selection.where import Selection, Where
from regplug.view import SessionView

__all__ = ["Selective"]


class Selective(Plugin):
    """Base of the plugins that act on selected parameters.

    A subclass sets ``self.where``; what it covers in a session is
    ``session.coverage(self._selection)``.
    """

    _selection = Selection()

    @property
    def where(self) -> Where:
        """The selection as it was given."""
        return self._selection.where

    @where.setter
    def where(self, where: Where) -> None:
        self._selection = Selection(where)

    def covers(self, session: SessionView) -> tuple[int, int] | None:
        """Return how many tensors and weights are covered."""
        coverage = session.coverage(self._selection)
        return len(coverage.trainable), coverage.weights

    def covered(self, session: SessionView) -> Sequence[str]:
        """Return the names of all that is covered, or may be once it has a shape."""
        return session.coverage(self._selection).names

    def notes(self, session: SessionView) -> Sequence[str]:
        """Return what is covered if it is little, and what is special about it."""
        from regplug.selection.in_use import notes

        return notes(session.coverage(self._selection))

    def agreement(self, session: SessionView) -> Mapping[str, Any]:
        """Return the settings, and what they come to in this model."""
        return {**super().agreement(session), "covers": self.covered(session)}
