"""How a session shows itself: as a table, in a line, in a notebook."""

from typing import TYPE_CHECKING, cast

from regplug.plugin import Plugin
from regplug.session.binding import Binding
from regplug.session.silence import Silence
from regplug.session.states import States
from regplug.view import SessionView

if TYPE_CHECKING:
    from regplug.session.description import Description

__all__ = ["Shown"]


class Shown:
    """The side of a session that people see. Its parts are made by the session."""

    name: str
    plugins: tuple[Plugin, ...]
    _binding: Binding
    _detached: bool
    _silence: Silence
    _states: States

    def describe(self) -> str:
        """Return a table of the plugins: where each acts, what it covers, how strong it is now."""
        return str(self._described())

    def __repr__(self) -> str:
        names = ", ".join(plugin.name for plugin in self.plugins)
        steps = cast(SessionView, self).steps
        return f"<regplug.Session {self.name!r}: {names or 'no plugins'}; {steps} steps>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows of it: the table of :meth:`describe`."""
        return self._described().html

    def _described(self) -> "Description":
        from regplug.session.description import described

        session = cast(SessionView, self)
        self._binding.bind(session)
        plugins, _ = self._states.answering()
        notes = [] if self._detached else self._silence.notes(session)
        return described(session, plugins, detached=self._detached, notes=notes)
