"""What to do where the optimizer itself decays the weights that ``weight_decay`` is to decay."""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

from regplug import Plugin, SessionView, lent
from regplug.errors import SpecError

__all__ = ["EXISTING", "Existing", "Group"]

Group = dict[str, Any]

EXISTING = ("error", "replace", "add")


class Existing:
    """The decay of an optimizer's own, which is refused, replaced until given back, or left alone.

    Args:
        mode: one of :data:`EXISTING`.

    Attributes:
        taken: the groups whose decay is replaced.
        first: whether :meth:`step` has still to look.
    """

    def __init__(self, mode: str) -> None:
        if mode not in EXISTING:
            raise SpecError(f"existing must be one of {', '.join(EXISTING)}, got {mode!r}")
        self.mode = mode
        self.taken: list[Group] = []
        self._warned = False
        self.first = False
        self._undo: list[Callable[[], None]] = []

    def attach(self, session: SessionView, take_over: Callable[[SessionView], None]) -> None:
        """Stay right where the optimizer's state is saved, and where one is loaded.

        Args:
            session: whose optimizer it is.
            take_over: begins anew: loading replaces the groups, and brings the old values back.
        """
        optimizer = session.optimizer
        if optimizer is not None and self.mode != "add":
            self.first = True
            self._undo += [
                lent.keep_in_states(optimizer),
                optimizer.register_load_state_dict_post_hook(
                    lambda optimizer: take_over(session)
                ).remove,
            ]

    def step(self, session: SessionView) -> None:
        """Look at the first step for what has been put around the optimizer by then."""
        if self.first and session.optimizer is not None:
            self.first = False
            self._undo += map(lent.keep_in_states, lent.around(session.optimizer))

    def detach(self) -> None:
        """Undo it, and give the optimizer its own decay back."""
        while self._undo:
            self._undo[-1]()
            self._undo.pop()
        self.first = False
        self.give_back()

    def said(self) -> str:
        """Return what is replaced, to be added to where a plugin acts."""
        took = {f"{lent.own(group['weight_decay']):g}" for group in self.taken}
        return f", replacing {', '.join(sorted(took))}" if took else ""

    def begin(
        self, groups: list[Group], covered: Iterable[int], plugin: Plugin, optimizer: object
    ) -> None:
        """Refuse or replace what there is.

        Args:
            groups: the optimizer's.
            covered: the indices of those that the plugin decays.
            plugin: who decays, for messages.
            optimizer: whose groups they are, likewise.

        Raises:
            SpecError: the optimizer decays, and ``mode`` is ``"error"``.
        """
        # Those that a loaded state has replaced are no one's any more.
        self.taken = [taken for taken in self.taken if any(taken is group for group in groups)]
        for index in covered:
            value = groups[index].get("weight_decay")
            if self.mode == "replace":
                self._take(groups[index])
            elif self.mode == "error" and value and type(value) is not lent.Lent:
                raise SpecError(
                    f"{plugin.name}: {type(optimizer).__name__} decays the parameters of group "
                    f"{index} already, by weight_decay={float(value):g}: make it with "
                    "weight_decay=0, or say existing='replace' (this plugin takes over until it "
                    "is detached) or existing='add' (both act)"
                )

    def go_on(
        self, groups: list[Group], covered: Iterable[int], plugin: Plugin, optimizer: object
    ) -> None:
        """Refuse or replace what the loop, a scheduler or a session that ended has set since.

        Raises:
            SpecError: the optimizer decays by now, and ``mode`` is ``"error"``.
        """
        if self.mode == "add":
            return
        for index in covered:
            value = groups[index].get("weight_decay")
            if not value or type(value) is lent.Lent:
                continue
            name = plugin.name
            who = (
                f"{name}: since it was attached, weight_decay={float(value):g} was set in group "
                f"{index} of this {type(optimizer).__name__}, by the loop or a scheduler"
            )
            how = (
                f"leave that out and give {name} the schedule, as in "
                f"weight_decay(cosine({float(value):g}, …, steps=…))"
            )
            if self.mode == "error":
                raise SpecError(
                    f"{who}, and both would decay: {how}, or say existing='replace' (this plugin "
                    "takes over what is set) or existing='add' (both act)"
                )
            self._take(groups[index])
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"{who}: it has no effect, for existing='replace' means that {name} alone "
                    f"decays: {how}, or say existing='add' (both act)",
                    stacklevel=3,
                )

    def _take(self, group: Group) -> None:
        # What stands there for another session may be 0 already: it is given back by the last.
        if lent.own(group.get("weight_decay")):
            lent.take(group, "weight_decay", 0.0, self)
            if not any(taken is group for taken in self.taken):
                self.taken.append(group)

    def give_back(self) -> None:
        """Give the optimizer its own decay back. An interrupted call may be made again."""
        while self.taken:
            lent.give_back(self.taken[-1], "weight_decay", self)
            self.taken.pop()
        self._warned = False
