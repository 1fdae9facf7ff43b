"""Numbers of an optimizer's groups that stand for the user's own for a while.

A plugin may take a number of a parameter group over, for a step or until it is detached. What is
saved or copied meanwhile is the user's own at any moment, in the middle of a step too, and several
plugins may give one number back in any order: the last one brings the user's own back.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer

from regplug.backend import stack

__all__ = [
    "Lent",
    "Loan",
    "around",
    "give_back",
    "keep_in_states",
    "lend",
    "own",
    "pay_back",
    "take",
]


class Lent(float):
    """A number in a group, in the place of the user's own, of which copies and pickles are made.

    Attributes:
        own: what the user has set.
        group: the group that it stands in.
        holders: who has put what in its place; the last one's number is this.
        before: what stood there before a loan, None if it is none.

    >>> import copy
    >>> group = {"weight_decay": 0.01}
    >>> take(group, "weight_decay", 0.0, "someone")
    >>> group, copy.deepcopy(group)
    ({'weight_decay': 0.0}, {'weight_decay': 0.01})
    >>> give_back(group, "weight_decay", "someone"); group
    {'weight_decay': 0.01}
    """

    __slots__ = ("before", "group", "holders", "own")

    own: Any
    group: dict[str, Any]
    holders: dict[Any, float]
    before: Any

    def __copy__(self) -> Any:
        return self.own

    def __deepcopy__(self, memo: Any) -> Any:
        return self.own

    def __reduce_ex__(self, protocol: Any) -> Any:
        plain = isinstance(self.own, int | float)
        return (type(self.own), (self.own,)) if plain else self.own.__reduce_ex__(protocol)


def own(value: Any) -> Any:
    """Return what the user has set, of a number that may stand for it."""
    return value.own if type(value) is Lent else value


def take(group: dict[str, Any], key: str, value: float, holder: object) -> None:
    """Put ``value`` in the place of the user's own until ``holder`` gives it back."""
    now = group[key]
    if type(now) is Lent and now.group is group:
        now.holders[holder] = value
        group[key] = _lent(value, now.own, group, now.holders)
    else:  # a group that was made from another's numbers has holders of its own
        group[key] = _lent(value, own(now), group, {holder: value})


def give_back(group: dict[str, Any], key: str, holder: object) -> None:
    """Undo what ``holder`` took, if anything; a number that the user has set since then stays."""
    now = group.get(key)
    if type(now) is not Lent or now.group is not group or holder not in now.holders:
        return
    left = [value for other, value in now.holders.items() if other is not holder]
    # The number first, so that an interrupted call can be made again.
    group[key] = _lent(left[-1], now.own, group, now.holders) if left else now.own
    del now.holders[holder]


@dataclass(slots=True, eq=False)
class Loan:
    """A number that is lent for the length of a step; it knows what stood there before."""

    group: dict[str, Any]
    key: str
    value: Lent


def lend(group: dict[str, Any], key: str, value: float, last: Loan | None = None) -> Loan:
    """Put ``value`` there until it is paid back.

    Args:
        group: the group.
        key: which of its numbers.
        value: the number.
        last: an earlier loan, which serves again if it is the same.
    """
    now = group[key]
    same = last is not None and last.value.before is now and last.group is group
    if last is None or not same or last.value != value:
        holders = now.holders if type(now) is Lent else {}
        last = Loan(group, key, _lent(value, own(now), group, holders))
        last.value.before = now
    group[key] = last.value
    return last


def pay_back(loan: Loan) -> None:
    """Undo what was lent, in any order; a number that the user has set since then stays.

    May be called twice.
    """
    now = loan.group[loan.key]
    if now is loan.value:
        loan.group[loan.key] = now.before
        return
    while type(now) is Lent:  # another loan on top of this one, which is not to bring it back
        if now.before is loan.value:
            now.before = loan.value.before
        now = now.before


def _lent(value: float, own: Any, group: dict[str, Any], holders: dict[Any, float]) -> Lent:
    made = Lent(value)
    made.own, made.group, made.holders, made.before = own, group, holders, None
    return made


def keep_in_states(optimizer: Optimizer) -> Callable[[], None]:
    """Make ``optimizer.state_dict()`` hold the user's own numbers, as plain as they were set.

    Returns:
        A function that undoes it. It may be called twice.
    """
    try:
        # Before the hooks of others, which may save what they see.
        handle = optimizer.register_state_dict_post_hook(_with_own, prepend=True)
    except AttributeError:  # a wrapper that skips Optimizer.__init__ has no hooks
        return lambda: None
    remove: Callable[[], None] = handle.remove
    return remove


def around(optimizer: Optimizer) -> list[Optimizer]:
    """Return the optimizers whose step called this one's, which now runs, with the same groups.

    One that wraps another (SAM does) packs these groups into a state dict of its own.
    """
    groups = {id(group) for group in optimizer.param_groups}
    found = {
        id(outer): outer
        for outer in stack.surrounding(optimizer)
        if any(id(group) in groups for group in getattr(outer, "param_groups", ()))
    }
    return list(found.values())


def _with_own(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any] | None:
    groups = state.get("param_groups", ())
    if not any(type(value) is Lent for group in groups for value in group.values()):
        return None
    return {**state, "param_groups": [_plain(group) for group in groups]}


def _plain(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: own(value) for key, value in group.items()}
