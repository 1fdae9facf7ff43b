"""The real steps of DeepSpeed's ZeRO, and the weights that it trains: its stages 1, 2 and 3.

An engine's ``step`` lets the torch optimizer update one flat tensor after another, each with the
gradient that it has just averaged, unscaled and clipped. A plugin wants all gradients, then the
update, then all weights. So each of those inner steps is put off until the last one, and they are
one step then: of the same tensors, with the same gradients. What overflowed comes to no step.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from regplug.backend import deepspeeds
from regplug.backend.fragments import Fragment, place
from regplug.backend.step_events import StepListener

__all__ = ["ZeroSteps", "steps_of"]

_KEPT = "regplug_steps"


def steps_of(zero: Any) -> "ZeroSteps":
    """Return the steps of a ZeRO optimizer, the same for each session that is attached to it."""
    found = vars(zero).get(_KEPT)
    if not isinstance(found, ZeroSteps) or not found.is_of(zero):
        found = ZeroSteps(deepspeeds.read(zero))
        setattr(zero, _KEPT, found)
    return found


class _GroupView(MutableMapping[str, Any]):
    """A parameter group, with parameters of the model in the place of flat tensors."""

    def __init__(self, optimizer: Optimizer, index: int, params: list[torch.Tensor]) -> None:
        self._optimizer, self._index, self._params = optimizer, index, params

    @property
    def _group(self) -> dict[str, Any]:
        # Loading a state replaces the groups.
        return self._optimizer.param_groups[self._index]

    def __getitem__(self, key: str) -> Any:
        return self._params if key == "params" else self._group[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._group[key] = value

    def __delitem__(self, key: str) -> None:
        del self._group[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._group)

    def __len__(self) -> int:
        return len(self._group)


class _States(Mapping[Any, Any]):
    """What the optimizer keeps of each parameter: this rank's elements of it."""

    def __init__(self, optimizer: Optimizer, rows: Mapping[int, torch.Tensor]) -> None:
        self._optimizer, self._rows = optimizer, rows

    def __getitem__(self, w: Fragment) -> Any:
        flat = self._rows[id(w)]
        return {
            key: w.within(value)
            if isinstance(value, torch.Tensor) and value.shape == flat.shape
            else value
            for key, value in self._optimizer.state.get(flat, {}).items()
        }

    def __iter__(self) -> Iterator[Any]:
        raise TypeError("the states of an engine's optimizer are asked for by parameter")

    def __len__(self) -> int:
        return len(self._rows)


class ZeroSteps:
    """The steps of one ZeRO optimizer, and what stands for its parameters.

    Args:
        zero: what it has on this rank.

    Attributes:
        inner: the torch optimizer inside.
        groups: its parameter groups, of parameters of the model.
        state: its state, by parameter: for each, of this rank's elements.
    """

    def __init__(self, zero: deepspeeds.Zero) -> None:
        self._zero, self.inner = zero, zero.inner
        self._listeners: list[StepListener] = []
        self._step: Callable[..., Any] | None = None
        self._ours: Callable[..., Any] | None = None
        self._before: Callable[..., Any] | None = None
        self._rows = {id(flat): row for row, flat in enumerate(zero.flat)}
        self._put_off: dict[int, tuple[dict[str, Any], torch.Tensor, torch.Tensor | None]] = {}
        self._linked = False
        params: list[list[torch.Tensor]] = [[] for _ in self.inner.param_groups]
        self._standing: list[tuple[deepspeeds.Slice, torch.Tensor]] = []
        for each in zero.slices:
            made = Fragment.of(
                zero.flat[each.row],
                shape=each.shape,
                offset=each.offset,
                start=each.start,
                count=each.count,
                group=each.group,
            )
            standing = place(each.parameter, made)
            self._standing.append((each, standing))
            params[zero.groups[each.row]].append(standing)
        self.groups = [_GroupView(self.inner, i, own) for i, own in enumerate(params)]
        rows = {id(standing): zero.flat[each.row] for each, standing in self._standing}
        self.state = _States(self.inner, rows)

    def is_of(self, zero: Any) -> bool:
        """Whether ``zero`` still has the flat tensors that these steps are of."""
        now = deepspeeds.read(zero)
        return now.inner is self.inner and all(
            a is b for a, b in zip(now.flat, self._zero.flat, strict=True)
        )

    # --- whom it tells --------------------------------------------------------------------

    def connect(self, listener: StepListener) -> None:
        """Tell ``listener`` of each real step from now on."""
        if self._step is None:
            self._before = vars(self.inner).get("step")
            self._step = step = self.inner.step

            @functools.wraps(step)  # with the marks that schedulers leave on it
            def stepping(*args: Any, **kwargs: Any) -> Any:
                return self._stepping(step, args, kwargs)

            self._ours = stepping
            self.inner.step = stepping  # type: ignore[method-assign]
        self._listeners.append(listener)

    def disconnect(self, listener: StepListener) -> None:
        """Tell ``listener`` no more. May be called twice, and in a step."""
        self._listeners = [one for one in self._listeners if one is not listener]
        if self._listeners or self._put_off or vars(self.inner).get("step") is not self._ours:
            return  # what others have put around it passes the step on from now on
        if self._before is None:
            del self.inner.step
        else:
            self.inner.step = self._before  # type: ignore[method-assign]
        self._step = self._ours = self._before = None

    # --- the step -------------------------------------------------------------------------

    def _stepping(self, step: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Stand where the engine calls the inner optimizer's ``step``."""
        if not self._listeners and not self._put_off:
            return step(*args, **kwargs)
        called = self.inner.param_groups
        for group in called:
            for flat in group["params"]:
                row = self._rows[id(flat)]
                if row in self._put_off:  # of a step that raised before its end
                    self._put_off.clear()
                self._put_off[row] = group, flat, flat.grad
        if len(self._put_off) < len(self._rows):
            return None
        put_off, self._put_off = self._put_off, {}
        last = {id(flat) for group in called for flat in group["params"]}
        try:
            result = self._at_once(step, args, kwargs, put_off)
        finally:
            self.inner.param_groups = called
        earlier = [row for row, (_, flat, _) in put_off.items() if id(flat) not in last]
        self._hand_on(earlier)
        return result

    def _at_once(
        self,
        step: Callable[..., Any],
        args: Any,
        kwargs: Any,
        put_off: Mapping[int, tuple[dict[str, Any], torch.Tensor, torch.Tensor | None]],
    ) -> Any:
        """Fire the events around one step of all flat tensors."""
        rows = [put_off[row] for row in sorted(put_off)]
        groups = {id(group): group for group, _, _ in rows}
        held = [(group, group["params"]) for group in groups.values()]
        gradients = [flat.grad for _, flat, _ in rows]
        if len(self.inner.param_groups) != len(self.groups):  # one at a time
            self.inner.param_groups = list(groups.values())
        try:
            for group, _ in held:
                group["params"] = [flat for of, flat, _ in rows if of is group]
            for _, flat, gradient in rows:
                flat.grad = gradient
            self._show(put_off)
            listeners = list(self._listeners)
            for listener in listeners:
                listener.gradients_ready()
                listener.before_update()
            result = step(*args, **kwargs)
            for listener in listeners:
                listener.after_update()
        finally:
            for _, standing in self._standing:
                standing.grad = None
            for group, params in held:
                group["params"] = params
            for (_, flat, _), gradient in zip(rows, gradients, strict=True):
                flat.grad = gradient
        return result

    def _show(
        self, put_off: Mapping[int, tuple[dict[str, Any], torch.Tensor, torch.Tensor | None]]
    ) -> None:
        """Give each parameter its gradient, and freeze what the user has frozen."""
        for each, standing in self._standing:
            gradient = put_off[each.row][2]
            standing.requires_grad_(each.parameter.requires_grad)
            if gradient is not None and isinstance(standing, Fragment):
                standing.grad = standing.like(standing.within(gradient))

    def _hand_on(self, rows: Sequence[int]) -> None:
        """Do for what was put off what the engine did too early."""
        copies = self._zero.copies
        if copies is not None:
            for row in rows:
                copies[row].data.copy_(self._zero.flat[row].data)
        if rows and not self._linked:
            self._linked = True
            for each, _ in self._standing:
                flat = self._zero.flat[each.row]
                deepspeeds.link(each.parameter, flat, self.inner.state[flat])
