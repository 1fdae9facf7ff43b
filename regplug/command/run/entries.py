"""One session of a program: what is remembered of it when it is gone."""

from collections.abc import Callable
from typing import Any

from regplug.finding.naming import title
from regplug.session.session import Session

__all__ = ["Entry"]


class Entry:
    """One session of the program, in as far as it is remembered when it is gone.

    Attributes:
        name: the session's name.
        title: what model is trained by what optimizer.
        steps: how many real steps it made.
        final: what ``look`` saw of it last.
        session: the session, or None once nothing but this entry would keep it alive.
    """

    def __init__(self, session: Session, look: Callable[[Session], Any]) -> None:
        self.name, self.title, self.steps = session.name, title(session.model, session.optimizer), 0
        self.final: Any = None
        self.session: Session | None = session
        self._look = look
        session.after_each_step(self._stepped)

    def _stepped(self, session: Session) -> None:
        self.steps, self.session = session.steps, session

    def settle(self) -> None:
        """Look at the session once more, and keep it alive no longer unless it steps again."""
        if self.session is not None:
            self.final = self._look(self.session)
            self.session = None
