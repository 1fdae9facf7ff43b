"""What a hook may ask of the session that calls it: :class:`SessionView`.

A protocol, so that plugins and all that they are made of know nothing of how a session works.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch
from torch import nn
from torch.optim import Optimizer

from regplug.backend.groups import Group
from regplug.selection.coverage import Coverage
from regplug.selection.where import Selection

if TYPE_CHECKING:
    from regplug.backend.update_rules import UpdateRule

__all__ = ["SessionView", "Update"]

Update: TypeAlias = tuple[int, list[torch.Tensor], list[torch.Tensor]]
"""What takes part in a step, of one group: its index, weights, and their gradients."""


class SessionView(Protocol):
    """A session as hooks see it. ``regplug.Session`` is one."""

    @property
    def model(self) -> nn.Module:
        """The user's own module, unwrapped."""

    @property
    def optimizer(self) -> Optimizer | None:
        """The torch optimizer, unwrapped; None for a loop without."""

    @property
    def plugins(self) -> tuple[Any, ...]:
        """The plugins, in the order in which they were given."""

    @property
    def name(self) -> str:
        """The session's name, ``"regplug"`` by default."""

    @property
    def kernels(self) -> str:
        """Which kernels may execute formulas, as ``attach(kernels=…)`` was told."""

    @property
    def handover(self) -> bool:
        """Whether decay may be left to the optimizer, as ``attach(handover=…)`` was told."""

    @property
    def steps(self) -> int:
        """Completed real steps."""

    @property
    def gradients_through_loss(self) -> bool:
        """Whether a backward pass came through ``session.loss`` yet."""

    @property
    def groups(self) -> list[Group]:
        """The parameter groups of whatever updates the weights."""

    @property
    def stateful(self) -> Any:
        """What has in ``state``, by parameter, what the optimizer keeps of this rank's part."""

    @property
    def gradient_scale(self) -> float:
        """What gradients are still multiplied by in on_gradients; not 1 for fused ones alone."""

    def coverage(self, selection: Selection) -> Coverage:
        """Return what ``selection`` covers of this optimizer's parameters."""

    def updates(self, selection: Selection) -> Iterator[Update]:
        """Yield (group index, weights, gradients) of what takes part in this step."""

    def learning_rate(self, group_index: int) -> Any:
        """Return the learning rate of a group, as the optimizer itself keeps it."""

    def update_rule(self) -> "UpdateRule":
        """Return what the optimizer multiplies a gradient by, for proximal steps."""

    def once_updated(self, callback: Callable[[], object]) -> None:
        """Call ``callback()`` once, right after the update of the step that is under way."""

    def metrics(self) -> dict[str, float]:
        """Return what the plugins report now."""

    def describe(self) -> str:
        """Return a table of the plugins."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""

    def detach(self) -> None:
        """Take everything off the loop again."""
