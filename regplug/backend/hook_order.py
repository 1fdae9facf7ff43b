"""Where a session's step hooks stand among those of others: next to the update, on both sides.

Gradients are final once all other pre-hooks had them (a clipping one), and weights are once plugins
had them, before any other post-hook looks (an average of the weights). torch calls hooks in the
order of registration, and global ones outside of an optimizer's own.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from regplug.backend.eager import eagerly

__all__ = ["StepHooks"]

Before = Callable[[Optimizer, Any, Any], Any]
After = Callable[[Optimizer, Any, Any], None]


class StepHooks:
    """Two step hooks that are called next to the update, whenever others register theirs.

    Those of several sessions stay in the order in which they were attached.

    Args:
        optimizer: a torch optimizer whose hooks fire.
        enter: is called as the last pre-hook.
        leave: is called as the first post-hook.
    """

    def __init__(self, optimizer: Optimizer, enter: Before, leave: After) -> None:
        self._enter, self._leave = enter, leave
        pre = optimizer.register_step_pre_hook(self._before)
        post = optimizer.register_step_post_hook(self._after)
        self._pre, posts = _table(pre), _table(post)
        self._key: int = pre.id
        self._handles: list[RemovableHandle] = [pre, post]
        # The last key of which it is known that no hook of others comes after ours, up to it.
        self._last: int | None = pre.id
        self._overtaken = False
        self._turn: object = None
        self._undo: Callable[[], None] | None = None
        if self._pre is None or posts is None:
            _warn_of_order()
        else:
            _to_the_front(posts)

    def remove(self, *, stepping: bool = False, begun: bool = True) -> None:
        """Remove the hooks. May be called twice.

        Args:
            stepping: whether a step is at work.
            begun: whether it has come to these hooks; if not, one before them calls this.
        """
        if stepping and not (begun and all(map(_is_last, self._handles))):
            # torch is going through hooks right now, of which none but the last can be removed,
            # and that only by itself.
            _remove_after_step(self._handles)
        else:
            for handle in self._handles:
                handle.remove()
        self._handles = []
        self._turn = None
        self._enter = self._leave = _nothing  # what they are bound to is free to go
        if self._undo is not None:
            self._undo()

    # Each is passed at every step, so that it looks itself whether a graph calls it: as its own
    # call, that would cost what all else here does.

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return self._before_in_graph(optimizer, args, kwargs)
        if self._pre and next(reversed(self._pre)) != self._last and self._wait():
            return None
        return self._enter(optimizer, args, kwargs)

    @eagerly
    def _before_in_graph(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        if self._pre and next(reversed(self._pre)) != self._last and self._wait():
            return None
        return self._enter(optimizer, args, kwargs)

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if torch.compiler.is_compiling():
            self._after_in_graph(optimizer, args, kwargs)
            return
        if self._overtaken:
            self._return()
        self._leave(optimizer, args, kwargs)

    @eagerly
    def _after_in_graph(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._overtaken:
            self._return()
        self._leave(optimizer, args, kwargs)

    def _return(self) -> None:
        """Stand last again, after the hooks that were let go first."""
        if self._key in self._pre:
            self._overtaken = False
            self._pre[self._key] = self._pre.pop(self._key)

    def _wait(self) -> bool:
        """Let the hooks of others that come after this one go first, and tell if there are any."""
        keys = list(self._pre)
        later = keys[keys.index(self._key) + 1 :]
        others = [key for key in later if not _is_own(self._pre[key])]
        if not others:
            self._last = keys[-1]
            return False
        # The table is being gone through and can't be put in order before the update is over. So
        # for this one step the last of these hooks calls ours after itself.
        last, hook = others[-1], self._pre[others[-1]]
        turn = self._turn = object()

        def undo() -> None:
            self._undo = None
            if self._pre.get(last) is then:  # another session may have put its own around this
                self._pre[last] = hook

        def then(optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
            undo()
            changed = hook(optimizer, args, kwargs)
            if turn is not self._turn:  # left behind by a step that raised before it got here
                return changed
            self._turn = None
            if isinstance(changed, tuple) and len(changed) == 2:
                args, kwargs = changed
            elif changed is not None:
                return changed  # which torch will refuse
            registered = self._enter(optimizer, args, kwargs)
            return changed if registered is None else registered

        self._pre[last], self._undo = then, undo
        self._overtaken = True
        return True


def _nothing(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    return None


def _is_own(hook: object) -> bool:
    return isinstance(getattr(hook, "__self__", None), StepHooks)


def _table(handle: RemovableHandle) -> Any:
    """Return the hooks that are called together with this one, in their order; None if unknown."""
    table = getattr(handle, "hooks_dict_ref", lambda: None)()
    return table if isinstance(table, dict) and handle.id in table else None


@lru_cache
def _warn_of_order() -> None:
    warnings.warn(
        f"torch {torch.__version__} does not show the order of an optimizer's step hooks: those "
        "that the loop registers after regplug.attach get gradients that already have the "
        "penalties in them, so register them (clipping ones, say) before",
        stacklevel=5,
    )


def _to_the_front(table: Any) -> None:
    for key in [key for key, hook in table.items() if not _is_own(hook)]:
        table[key] = table.pop(key)


def _is_last(handle: RemovableHandle) -> bool:
    """Whether a hook is the last of its kind, or is gone; no if that can't be known."""
    table_of = getattr(handle, "hooks_dict_ref", None)
    if table_of is None:
        return False
    hooks = table_of()
    return not hooks or handle.id not in hooks or next(reversed(hooks)) == handle.id


_waiting: list[RemovableHandle] = []


def _remove_after_step(handles: Sequence[RemovableHandle]) -> None:
    """Remove hooks of an optimizer once the step that is at work is over."""
    first = not _waiting
    _waiting.extend(handles)
    if not first:
        return

    def remove(*arguments: Any) -> None:
        registered.remove()  # the last of its kind, which alone can be taken out here
        while _waiting:
            _waiting.pop().remove()

    # torch calls these after the optimizer's own hooks, each list by itself.
    registered = register_optimizer_step_post_hook(remove)
