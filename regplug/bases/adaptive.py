"""Plugins whose strength follows something measured: :class:`Adaptive`."""

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch

from regplug.errors import SpecError, StateError
from regplug.hookspecs import hookimpl
from regplug.plugin import Plugin, Scheduled
from regplug.schedules import constant
from regplug.view import SessionView

__all__ = ["Adaptive"]


class Adaptive(Plugin):
    """Base of the plugins that set their own strength, by what they measure or are told.

    A subclass names in :attr:`adapts` the attributes that move, and sets them in :meth:`adapt`,
    after each real step, or in ``on_note``, when the loop says ``session.note(val_loss=…)``. They
    are saved with the session and restored to the bit, and are at detach what they were at attach.
    Beside a penalty it comes first: ``class Mine(regplug.Adaptive, regplug.Penalty)``.

    What ranks that train one model together set must be alike: measure what is the whole model's
    (:func:`regplug.summed`), or what the session sees to (values that are noted must be alike on
    all ranks). A number that is read from a device has the host wait for it: keep a tensor, or ask
    rarely (:attr:`every`).

    A penalty that grows as long as the loss on new data exceeds that on the training data:

    >>> import regplug, torch
    >>> class GapL2(regplug.Adaptive, regplug.Penalty):
    ...     "λ·Σw², with λ by the gap between training and validation"
    ...     separable = True
    ...     def value(self, w):
    ...         return w.square().sum()
    ...     @regplug.hookimpl
    ...     def on_note(self, session, values):
    ...         if "val_loss" in values:
    ...             gap = values["val_loss"] - values["loss"]
    ...             self.strength = self.strength * (1.1 if gap > 0.1 else 0.9)
    >>> model = torch.nn.Linear(3, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> session = regplug.attach(model, optimizer, [GapL2(1e-3)])
    >>> session.note(loss=0.5, val_loss=0.9)
    >>> round(session.plugins[0].strength, 6)
    0.0011
    >>> session.state_dict()["plugins"]["gap_l2"]["adapted"].keys()
    dict_keys(['strength'])
    """

    adapts: ClassVar[tuple[str, ...]] = ("strength",)
    """The attributes that move, scheduled ones (:class:`regplug.Scheduled`) or plain ones that
    hold numbers, strings, None, tensors, and lists, tuples and dicts of them."""

    whole_state = ("adapted",)

    every: int = 1
    """After how many real steps :meth:`adapt` is called each time."""

    _at_attach: dict[str, Any] | None = None

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        before = cls.__mro__[: cls.__mro__.index(Adaptive)]
        if first := [c for c in before if not issubclass(c, Adaptive) and issubclass(c, Plugin)]:
            raise SpecError(
                f"class {cls.__name__}: Adaptive comes before {first[0].__name__}, whose events "
                f"it takes up: class {cls.__name__}(regplug.Adaptive, {first[0].__name__})"
            )

    def adapt(self, session: SessionView) -> None:
        """Set what is to hold from the next step on. Called after the update, with grad off.

        ``session.steps`` is not raised yet; weights are final but for plugins that come later.
        """

    @hookimpl
    def on_attach(self, session: SessionView) -> None:
        """Remember what the attributes were."""
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise SpecError(f"every must be a whole number of at least 1, got {self.every!r}")
        if isinstance(self.adapts, str):
            raise SpecError(f"adapts must be a tuple, ({self.adapts!r},), got {self.adapts!r}")
        if unknown := [name for name in self.adapts if not hasattr(self, name)]:
            raise SpecError(
                f"{self.name}: adapts names {unknown[0]!r}, which the plugin does not have: set it "
                "in __init__, or name in adapts what moves"
            )
        if given := [name for name in self.adapts if name in self.mappings]:
            raise SpecError(
                f"{self.name}: {given[0]} follows what is measured, and can't be given by pattern"
            )
        if self._at_attach is None:
            own = vars(self)
            self._at_attach = {name: _kept(own[name]) for name in self.adapts if name in own}
        self._beneath("on_attach", session=session)

    @hookimpl
    def after_step(self, session: SessionView) -> None:
        """Do what the kind of plugin does, then adapt."""
        if (beneath := getattr(super(), "after_step", None)) is not None:
            beneath(session)
        if (session.steps + 1) % self.every == 0:
            self.adapt(session)
        self._check_set()

    def _check_set(self) -> None:
        """Refuse a schedule or patterns that were set since: a resumed run could not go on so."""
        own, before = vars(self), self._at_attach or {}
        for name in self.adapts:
            value = own.get(name)
            if callable(value) and type(value) is not constant and value is not before.get(name):
                raise SpecError(
                    f"{name} was set to {value!r}, which can't be saved: what adapts sets numbers, "
                    "anew whenever they are others"
                )

    @hookimpl
    def on_state(self, session: SessionView) -> Mapping[str, Any]:
        """Return the attributes as they are now, beside what the kind of plugin remembers."""
        adapted = {name: _copied(getattr(self, name)) for name in self.adapts if self._moved(name)}
        return {**(self._beneath("on_state", session=session) or {}), "adapted": adapted}

    @hookimpl
    def on_load_state(self, session: SessionView, state: Mapping[str, Any]) -> None:
        """Go on with the attributes as they were saved."""
        saved = state.get("adapted")
        if not isinstance(saved, Mapping) or not set(saved) <= set(self.adapts):
            raise StateError(
                f"{self.name}: its state has no values of {', '.join(self.adapts)}: is it of "
                "another plugin of that name?"
            )
        own = vars(self)
        for name in self.adapts:
            if name in saved:
                setattr(self, name, _copied(saved[name], like=own.get(name)))
            elif self._at_attach is not None and name in self._at_attach:
                own[name] = _kept(self._at_attach[name])
            elif self._at_attach is not None:
                own.pop(name, None)
        self._beneath("on_load_state", session=session, state=state)

    @hookimpl
    def on_detach(self, session: SessionView) -> None:
        """Put the attributes back."""
        self._beneath("on_detach", session=session)
        if self._at_attach is not None:
            for name in set(self.adapts) - set(self._at_attach):
                vars(self).pop(name, None)  # the class's own holds again
            vars(self).update(self._at_attach)
            self._at_attach = None

    def _moved(self, name: str) -> bool:
        """Whether an attribute has a value of its own: a schedule still is one by the step."""
        if not isinstance(inspect.getattr_static(type(self), name, None), Scheduled):
            return True
        return isinstance(vars(self).get(name), constant)

    def _beneath(self, event: str, **arguments: Any) -> Any:
        """Call the hook of the kind of plugin that it is beside, with what it takes."""
        hook: Callable[..., Any] | None = getattr(super(), event, None)
        if hook is None:
            return None
        takes = inspect.signature(hook).parameters
        return hook(**{name: value for name, value in arguments.items() if name in takes})


def _kept(value: Any) -> Any:
    """Return a copy that nothing done to ``value`` in place reaches."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if callable(value):  # a schedule, which nobody changes
        return value
    return copy.deepcopy(value) if isinstance(value, dict | list) else copy.copy(value)


def _copied(value: Any, like: Any = None) -> Any:
    """Return a copy of a state: tensors are where, and of what type, those that it replaces are."""
    if isinstance(value, torch.Tensor):
        placed = value.detach().to(like) if isinstance(like, torch.Tensor) else value.detach()
        return placed.clone() if placed.data_ptr() == value.data_ptr() else placed
    if isinstance(value, Mapping):
        known = like if isinstance(like, Mapping) else {}
        return {key: _copied(item, known.get(key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_copied(item) for item in value]
    if isinstance(value, tuple):
        return tuple([_copied(item) for item in value])
    if getattr(value, "ndim", None) == 0:
        return value.item()  # a number of NumPy's, which torch.load(weights_only=True) refuses
    if not isinstance(value, _SAVED):
        raise StateError(
            f"a {type(value).__name__} can't be saved: keep numbers, strings, None, tensors, and "
            "lists, tuples and dicts of them"
        )
    return value


_SAVED = (bool, int, float, complex, str, bytes, set, type(None), torch.dtype, torch.device)
