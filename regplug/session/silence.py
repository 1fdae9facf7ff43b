"""Loops in which plugins are attached and nothing acts: noticed, and warned of once.

Three kinds: a loop that trains with another optimizer than the attached one; one that stops calling
``session.loss``, where penalties are delivered in the loss; and one that never calls it, for
plugins that do nothing but in it. What tells is counted in each loss event and each step, by an
integer or two; the rest is worked out when a count is suspicious, or when somebody asks.
"""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn.parameter import is_lazy

from regplug.backend import wrappers
from regplug.backend.private import version_reader
from regplug.view import SessionView

if TYPE_CHECKING:
    from regplug.backend.groups import Group

__all__ = ["Silence"]

_PASSES = 16
"""Loss events without a step in between, from which on it is looked whether the weights move."""

_MOVES = 8
"""So many changes to a weight between two steps are no clamping, loading or averaging."""

_IDLE_MOVES = 16
"""The same where there is nothing else to go by."""

_NEVER = 4
"""Steps without any loss event, after which plugins that need one are warned of."""

_GAP = 32
"""Steps since the last loss event: penalties that are added every 16th step only are usual."""


class Silence:
    """What one session has seen of its loop, as far as it tells that nothing acts.

    Attributes:
        waiting: backward passes through the loss event before the first step; None after it.
    """

    def __init__(self) -> None:
        self.waiting: int | None = 0
        self._events = 0  # loss events since the last step, or evaluation of a closure
        self._without = 0  # steps since the last loss event
        self._longest = 0
        self._limit = _NEVER
        self._ever = False
        self._witness: torch.Tensor | None = None
        self._version = 0
        self._version_of = version_reader()
        self._sample: torch.Tensor | None = None
        self._warned: set[str] = set()

    # --- what happens ---------------------------------------------------------------------

    def watch(self, groups: "Sequence[Group]") -> None:
        """Choose a weight by which to see whether the weights move."""
        trained = [
            p
            for group in groups
            for p in group["params"]
            # A lazy one can't be asked before it has a shape.
            if p.requires_grad and not is_lazy(p) and not p.is_inference()
        ]
        # The last, since the first layers are what is frozen and embeddings may not be used.
        self._witness = trained[-1] if trained else None
        self._version_of = version_reader()
        self._version = self._version_now()

    def _version_now(self) -> int:
        return 0 if self._witness is None else self._version_of(self._witness) or 0

    def in_loss(self, session: SessionView) -> None:
        """A loss event with a graph behind it."""
        if self._without or not self._ever:
            self._longest = max(self._longest, self._without - 1)
            self._without, self._limit, self._ever = 0, _GAP + 2 * self._longest, True
        self._events += 1
        if self._events >= _PASSES and self._events & (self._events - 1) == 0:
            self._look(session)

    def evaluated(self) -> None:
        """A closure was evaluated in a step of the attached optimizer."""
        self._events = 0

    def stepped(self, session: SessionView) -> None:
        """A real step is over."""
        self.waiting = None
        self._events = 0
        self._without += 1
        if (witness := self._witness) is not None:
            self._version = self._version_of(witness) or 0
        if self._without >= self._limit:
            self._limit *= 2  # nobody may need it now, and somebody later
            if needy := self._needy(session):
                self._tell("loss", self._no_loss(session, needy))

    # --- what is warned of ----------------------------------------------------------------

    def notes(self, session: SessionView) -> list[str]:
        """Return what ``describe()`` says of it."""
        found = []
        if self.waiting or self._is_left(session):
            found.append(self._no_step(session))
        if self._without > bool(self._ever) and (needy := self._needy(session)):
            found.append(self._no_loss(session, needy))
        if part := wrappers.stages_of(session.model):
            numbers, count = part
            found.append(
                f"of a pipeline of {count} stages this is {' and '.join(map(str, numbers))}: "
                "figures, and what looks at all weights together, are of this part of the model"
            )
        return found

    def ask(self, session: SessionView) -> None:
        """Tell of an optimizer that was replaced, which no event shows: when metrics are asked."""
        if "step" not in self._warned and self._is_left(session):
            self._tell("step", self._no_step(session))

    def last_words(self, session: SessionView) -> dict[str, str]:
        """Return what is to be warned of when the session is detached, by its kind."""
        found = {}
        if self._is_left(session):
            found["step"] = self._no_step(session)
        lacking = self._without - self._ever
        enough = lacking > 3 and lacking > 2 * self._longest if self._ever else lacking > 0
        if enough and (needy := self._needy(session)):
            found["loss"] = self._no_loss(session, needy)
        return {kind: words for kind, words in found.items() if kind not in self._warned}

    def tell(self, words: dict[str, str]) -> None:
        """Tell what :meth:`last_words` returned."""
        for kind, text in words.items():
            self._tell(kind, text)

    def _tell(self, kind: str, words: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(words, stacklevel=4)

    # --- how it is seen -------------------------------------------------------------------

    def _moves(self) -> int:
        """Return how often the witness was changed in place since the last step."""
        return self._version_now() - self._version

    def _is_left(self, session: SessionView) -> bool:
        """Whether others train the weights, as far as it can be told without a loss event."""
        in_loss = self.waiting is not None and session.gradients_through_loss
        return self._moves() >= _IDLE_MOVES and not in_loss

    def _look(self, session: SessionView) -> None:
        """Tell if weights move though the attached optimizer does not step.

        Without that, many passes are accumulation, evaluation, or steps that a scaler skips.
        """
        if "step" in self._warned or self._witness is None:
            return
        by_hand = session.optimizer is None and self._events < 256
        sample, self._sample = self._sample, _sample(self._witness)
        # Whoever updates weights through .data leaves no trace in their version.
        moved = sample is not None and not torch.equal(sample, self._sample)
        if (self._moves() >= _MOVES or (moved and self._events > _PASSES)) and not by_hand:
            self._tell("step", self._no_step(session))

    def _needy(self, session: SessionView) -> list[str]:
        return [plugin.name for plugin in session.plugins if plugin.waits_for_loss(session)]

    def _no_step(self, session: SessionView) -> str:
        kind = type(session.optimizer).__name__
        who = "no optimizer" if session.optimizer is None else f"this {kind}"
        ways = (
            "wrap the update in `with session.step():`"
            if session.optimizer is None
            else "attach to the optimizer whose step() the loop calls, for a wrapper the one inside"
        )
        if self.waiting is None:
            return (
                f"the weights of {session.name}, which is attached to {who}, are changed by others "
                f"since its last step, the {session.steps}th, so nothing acts at the step any "
                f"more: {ways}; after making the optimizer anew, detach() and attach again"
            )
        seen = (
            f"{self.waiting} backward passes came through the loss event of {session.name}"
            if self.waiting
            else f"the weights of {session.name} are trained"
        )
        which = "which" if self.waiting else "and it"
        return (
            f"{seen}, {which} is attached to {who}, but no step was seen, so nothing acts at the "
            f"step: {ways}"
        )

    def _no_loss(self, session: SessionView, needy: list[str]) -> str:
        names, one = ", ".join(needy), len(needy) == 1
        lacking = self._without - self._ever
        since = f"the last {lacking} steps came" if self._ever else f"{lacking} steps came"
        return (
            f"{names} of {session.name} {'acts' if one else 'act'} in the loss, and {since} "
            f"without session.loss, so {'it does' if one else 'they do'} nothing: write "
            "`loss = session.loss(loss)` before `loss.backward()`, or use delivery='step' where "
            "there is one"
        )


def _sample(w: torch.Tensor) -> torch.Tensor:
    """Return a few elements of a weight, which is all that a comparison needs."""
    from regplug.backend import shards

    return shards.local(w).detach().reshape(-1)[:64].clone()
