"""What a plugin remembers, at one moment: to put it back, or to ask it as it was then.

Hooks would tell more, but each fires when it is said to. So this looks at the plugin's attributes:
plain containers, tensors, and objects of classes that its own module defines. All else, parameters
and modules among it, is not the plugin's own, and stays as it is.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from regplug.backend import shards
from regplug.backend.blocks import BLOCK
from regplug.backend.private import version
from regplug.errors import StateError
from regplug.kernels.kernel import Kernel
from regplug.plugin import Plugin

__all__ = ["Ghost", "Memory"]


def _is_helper(value: object, module: str) -> bool:
    """Whether ``value`` is an object of a class that the plugin's own module defines."""
    ours = type(value).__module__ == module and not isinstance(value, Plugin | nn.Module | type)
    return ours and hasattr(value, "__dict__") and not callable(value)


class Memory:
    """What is needed to put a plugin back as it is now, into the very same objects.

    >>> plugin = Plugin()
    >>> plugin.kept = [1, {"w": torch.zeros(1)}]
    >>> memory = Memory(plugin)
    >>> _ = plugin.kept[1].pop("w").add_(1); plugin.kept = None
    >>> memory.restore(); plugin.kept
    [1, {'w': tensor([0.])}]
    """

    def __init__(self, plugin: Plugin) -> None:
        self._module = type(plugin).__module__
        self._known: set[int] = set()
        self._undo: list[Callable[[], object]] = []
        self._kept: list[object] = []  # so that no id is given again
        self._remember(vars(plugin))

    def restore(self) -> None:
        """Put everything back."""
        for undo in self._undo:
            undo()

    def _remember(self, value: Any) -> None:
        if id(value) in self._known or isinstance(value, nn.Parameter):
            return
        if isinstance(value, torch.Tensor):
            self._remember_tensor(value)
        elif isinstance(value, dict):
            content = dict(value)
            self._undo += [value.clear, lambda: value.update(content)]
            self._inside(value, content.values())
        elif isinstance(value, list):
            items = list(value)
            self._undo.append(lambda: value.__setitem__(slice(None), items))
            self._inside(value, items)
        elif isinstance(value, set):
            members = set(value)
            self._undo += [value.clear, lambda: value.update(members)]
            self._inside(value, ())
        elif isinstance(value, tuple):
            self._inside(value, value)
        elif _is_helper(value, self._module):
            self._inside(value, (vars(value),))

    def _inside(self, value: object, parts: Any) -> None:
        self._known.add(id(value))
        self._kept.append(value)
        for part in parts:
            self._remember(part)

    def _remember_tensor(self, tensor: torch.Tensor) -> None:
        if tensor.is_inference() or tensor.is_meta or tensor.layout != torch.strided:
            return
        self._inside(tensor, ())
        local = shards.local(tensor).detach()
        # In the host's memory, where there is more of it, as a state that is saved would be.
        content, before = local.to("cpu", copy=True), version(tensor)

        def undo() -> None:
            if before is None or version(tensor) != before:
                with torch.no_grad():
                    local.copy_(content)

        self._undo.append(undo)


class Ghost:
    """A plugin as it is now, whatever becomes of the one that is attached.

    Small tensors are copied, large ones shared.

    Attributes:
        plugin: the copy.

    >>> plugin = Plugin()
    >>> plugin.kept = [1]
    >>> as_it_was = Ghost(plugin)
    >>> plugin.kept.clear(); as_it_was.plugin.kept
    [1]
    """

    def __init__(self, plugin: Plugin) -> None:
        self._module = type(plugin).__module__
        self._copies: dict[int, tuple[object, Any]] = {}
        self._shared: list[tuple[torch.Tensor, int | None]] = []
        self.plugin: Plugin = object.__new__(type(plugin))
        # A kernel is bound to the plugin that made it; the copy makes its own when it is asked.
        attributes = {k: v for k, v in vars(plugin).items() if not isinstance(v, Kernel)}
        vars(self.plugin).update({k: self._copied(v) for k, v in attributes.items()})
        self._copies.clear()

    def check(self) -> None:
        """Check that what is shared is as it was.

        Raises:
            StateError: another session, to which the plugin was attached since, overwrote it.
        """
        if any(version(tensor) != before for tensor, before in self._shared):
            raise StateError(
                f"{self.plugin.name} was attached to another session since, and has overwritten "
                "what it knew of this one: ask before that, or make an instance for each session"
            )

    def _copied(self, value: Any) -> Any:
        if id(value) not in self._copies:
            self._copies[id(value)] = value, self._copy(value)
        return self._copies[id(value)][1]

    def _copy(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if type(value) is tuple:
            return tuple(map(self._copied, value))
        if isinstance(value, dict):
            twin = copy.copy(value)
            twin.update({key: self._copied(part) for key, part in value.items()})
            return twin
        if isinstance(value, list):
            items = copy.copy(value)
            items[:] = map(self._copied, value)
            return items
        if isinstance(value, set):
            return copy.copy(value)
        if _is_helper(value, self._module):
            twin = copy.copy(value)
            vars(twin).update({k: self._copied(v) for k, v in vars(value).items()})
            return twin
        return value

    def _tensor(self, value: torch.Tensor) -> torch.Tensor:
        if isinstance(value, nn.Parameter) or value.is_inference():
            return value
        if value.grad_fn is not None:
            value = value.detach()  # the graph behind it is not to live on
        if type(value) is torch.Tensor and value.numel() <= BLOCK:
            return value.detach().clone()
        self._shared.append((value, version(value)))
        return value
