"""What every plugin subclasses, and the attribute that follows a schedule.

A plugin that only watches:

>>> import regplug, torch
>>> class Watch(regplug.Plugin):
...     changes_weights = False
...     @regplug.hookimpl
...     def after_step(self, session):
...         print("step", session.steps)
>>> model = torch.nn.Linear(3, 1)
>>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
>>> session = regplug.attach(model, optimizer, [Watch()])
>>> model(torch.ones(1, 3)).sum().backward(); optimizer.step()
step 0
>>> session.plugins[0].name
'watch'
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, ClassVar, overload

from regplug.backend.marks import is_hook
from regplug.errors import NeverSetError, SpecError, failure
from regplug.installed import distribution_of, entry_name_of
from regplug.schedules import Schedule, as_schedule, constant
from regplug.strengths import ByPattern, StrengthLike, per_layer
from regplug.values import checked
from regplug.view import SessionView

__all__ = [
    "Plugin",
    "Scheduled",
    "failure_now",
    "session_of",
    "set_session",
    "set_steps",
]


class Scheduled:
    """An attribute that is set to a number or a schedule and read as its value now.

    "Now" is the step that the session is in; before a plugin is attached it is step 0. With
    :attr:`Plugin.by_pattern` it may be a mapping of patterns, too, and is read as the largest.

    Args:
        low: the smallest value allowed.
        high: the largest value allowed.
        off: the value at which the plugin is as good as absent, to the bit; None if it has no
            such value, as the bound of a constraint. The exam checks it.

    Raises:
        SpecError: on setting or reading a value that is not finite or out of range; it names the
            attribute.

    >>> class Noise(Plugin):
    ...     scale = Scheduled(low=0.0, high=1.0)
    ...     def __init__(self, scale):
    ...         self.scale = scale
    >>> Noise(0.5).scale
    0.5
    """

    def __init__(
        self, low: float = 0.0, high: float = float("inf"), *, off: float | None = 0.0
    ) -> None:
        self.low, self.high, self.off = low, high, off

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> "Scheduled": ...
    @overload
    def __get__(self, instance: "Plugin", owner: type) -> float: ...
    def __get__(self, instance: "Plugin | None", owner: type) -> "Scheduled | float":
        if instance is None:
            return self
        schedule = instance.__dict__.get(self.name)
        if type(schedule) is constant:  # checked when it was set
            return schedule.value
        if type(schedule) is ByPattern and schedule.instead is not None:
            return schedule.instead  # type: ignore[no-any-return]
        return self.at(instance, instance._step)

    def __set__(self, instance: "Plugin", value: StrengthLike) -> None:
        if isinstance(value, Mapping | per_layer):
            if not instance.by_pattern:
                raise SpecError(
                    f"{instance.name}: {self.name} is one for all, and can't be given by pattern "
                    f"(got {value!r}): attach the plugin once for each, with where= and a name="
                )
            found: Callable[[int], float] = ByPattern(value, self.name, self.low, self.high)
        else:
            found = as_schedule(value, self.name, low=self.low, high=self.high)
        instance.__dict__[self.name] = found
        if instance._mapped or type(found) is ByPattern:
            instance._mapped = bool(instance.mappings)
            instance.changed_patterns()

    def schedule(self, plugin: "Plugin") -> Callable[[int], float]:
        """Return the schedule behind the attribute of ``plugin``."""
        try:
            schedule: Callable[[int], float] = plugin.__dict__[self.name]
        except KeyError:
            raise NeverSetError(
                f"{type(plugin).__name__}.{self.name} was never set: its __init__ should set it, "
                "or call super().__init__"
            ) from None
        return schedule

    def at(self, plugin: "Plugin", step: int) -> float:
        """Return the value at ``step``."""
        return checked(self.schedule(plugin)(step), self.name, low=self.low, high=self.high)


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[A-Za-z0-9])(?=[A-Z][a-z])|(?<=[a-z])(?=[A-Z])", "_", name).lower()


class Plugin:
    """Base of every plugin. A plugin acts by methods marked with :data:`regplug.hookimpl`.

    The hooks, when each fires and what it may do: :mod:`regplug.hookspecs`. An instance belongs to
    one session at a time.

    >>> import regplug
    >>> class Counter(regplug.Plugin):
    ...     seen, changes_weights = 0, False
    ...     @regplug.hookimpl
    ...     def after_step(self, session):
    ...         self.seen += 1
    >>> Counter().name
    'counter'
    """

    requires: str = "1.0"
    """The version of the hook contract that the class was written for, which is to be no newer than
    :data:`regplug.hookspecs.VERSION`, and of the same first number."""

    changes_weights: bool = True
    """Whether ``before_step`` and ``after_step``, if implemented, change weights. Such a plugin is
    refused with LBFGS, whose line search it would break; a plugin that only watches says False."""

    scaled_gradients: bool = False
    """Whether ``on_gradients`` multiplies what it adds by ``session.gradient_scale`` itself. Else
    the session unscales the gradients first where a fused optimizer has left that to its kernel."""

    order_matters: bool = False
    """Whether what the plugin does in an event depends on what others did in that event before it
    (it changes gradients by more than an addition, say). If not, the exam checks that."""

    reads_gradients: bool = True
    """Whether hooks look at gradients, or change them by more than an addition. Only if none that
    comes later does, ``l2`` leaves its gradient to the optimizer. False is the word of the class
    that says it, for the hooks that it has: not for those that a subclass writes."""

    by_pattern: bool = False
    """Whether strengths may be mappings of patterns, as :meth:`regplug.Selective.by_part` reads."""

    stochastic: bool = False
    """Whether it draws at random. Then the exam compares distributed runs by their statistics."""

    projects: bool | None = None
    """Whether ``after_step`` puts each weight to the nearest point of a set, which the exam checks
    then. False says that it does not: what looks like a constraint moves weights again in each
    step, or further than it must, on purpose. None leaves that to what the exam sees."""

    whole_state: ClassVar[Collection[str]] = ()
    """The keys of its state (``on_state``) under which tensors are the whole model's, alike on all
    ranks, whatever part of the weights each has. They are loaded on any mesh, and any number of
    ranks; other plain tensors may be a rank's own part, which goes back to that rank alone."""

    shapes_loss: bool = False
    """Whether it changes the loss of the loop itself, and so the gradients of all that is trained,
    by whatever optimizer: as label smoothing does."""

    exam_model: Callable[[], Any] | None = None
    """What returns a new model for the exam, for plugins that find nothing to act on in its own. It
    is a function at the top of a module, as a ``staticmethod``, of a module from ``(N, 6)`` to
    ``(N, 1)``. Whoever examines the plugin may give another."""

    _step: int = 0
    _mapped: bool = False  # whether there are mappings: asked in each event
    _name: str | None = None
    _session_name: str | None = None

    @property
    def name(self) -> str:
        """The name under which state and metrics go, the entry point's or the class's."""
        return self._name or entry_name_of(type(self)) or _snake_case(type(self).__name__)

    @name.setter
    def name(self, name: str | None) -> None:
        if name is not None and not (isinstance(name, str) and name and "/" not in name):
            raise SpecError(f"name must be a non-empty string without '/', got {name!r}")
        self._name = name

    @property
    def source(self) -> str:
        """The distribution that the plugin comes from, with its version."""
        return " ".join(distribution_of(type(self))).strip()

    def acts(self, session: SessionView) -> str:
        """Return in a few words where the plugin acts, for ``session.describe()``."""
        return (
            ", ".join(
                hook
                for hook in ("on_loss", "on_gradients", "before_step", "after_step")
                if is_hook(getattr(type(self), hook, None))
            )
            or "nowhere"
        )

    def sees_gradients(self, event: str) -> bool:
        """Return whether the hook of an event may look at gradients: see :attr:`reads_gradients`.

        >>> import regplug
        >>> class Watch(Plugin):
        ...     @regplug.hookimpl
        ...     def on_gradients(self, session): ...
        >>> Watch().sees_gradients("on_gradients"), Watch().sees_gradients("after_step")
        (True, False)
        """
        if not is_hook(getattr(self, event, None)):
            return False
        if event in vars(self):
            return True
        word = vars(self).get("reads_gradients")
        for cls in type(self).__mro__:
            word = vars(cls).get("reads_gradients") if word is None else word
            if event in vars(cls):
                break
        return word is not False

    def idle(self, session: SessionView) -> Collection[str]:
        """Return the events in which there is nothing to do from here on, though hooks are there.

        Asked at attach and after the first step; the hooks are not called in these any more.
        """
        return ()

    def waits_for_loss(self, session: SessionView) -> bool:
        """Return whether all that it does now hangs on the loop's calling ``session.loss``.

        In a loop that does not, a warning says so. By default: whether ``on_loss`` is its only
        busy event.
        """
        idle = self.idle(session)
        events = ("on_loss", "on_gradients", "before_step", "after_step")
        hooks = {event: getattr(self, event, None) for event in events if event not in idle}
        return [e for e, hook in hooks.items() if is_hook(hook)] == ["on_loss"]

    def covers(self, session: SessionView) -> tuple[int, int] | None:
        """Return how many tensors and weights are covered, or None if that is no question."""
        return None

    def strengths(self) -> Mapping[str, float]:
        """Return each scheduled attribute with its value now."""
        scheduled = {
            name: None
            for cls in reversed(type(self).__mro__)
            for name, attribute in vars(cls).items()
            if isinstance(attribute, Scheduled) and name in self.__dict__
        }
        return {name: getattr(self, name) for name in scheduled}

    @property
    def mappings(self) -> Mapping[str, ByPattern]:
        """The scheduled attributes that are strengths by pattern."""
        return {k: v for k, v in vars(self).items() if type(v) is ByPattern}

    def settle_patterns(self, session: SessionView) -> None:
        """Find out what strengths by pattern come to in a session's model."""

    def changed_patterns(self) -> None:
        """Take note that strengths by pattern were set, or are no more."""

    def notes(self, session: SessionView) -> Sequence[str]:
        """Return lines that ``session.describe()`` puts under the table."""
        return ()

    def agreement(self, session: SessionView) -> Mapping[str, Any]:
        """Return what all ranks must agree on, as plain values with a ``repr`` alike everywhere."""
        return {
            name: repr(value)
            for name, value in sorted(vars(self).items())
            if not name.startswith("_")
            and isinstance(value, int | float | str | None | list | tuple | Schedule)
        }


def failure_now(instance: Plugin, error: Exception, event: str) -> Exception:
    """Return what to raise instead of ``error``, at the step that a plugin is in."""
    return failure(error, instance.name, instance.source, event, instance._step)


def set_steps(plugins: Iterable[Plugin], step: int) -> None:
    """Have the scheduled attributes of plugins read at ``step``."""
    for instance in plugins:
        instance._step = step


def session_of(instance: Plugin) -> str | None:
    """Return the name of the session that a plugin belongs to, None if it is free."""
    return instance._session_name


def set_session(instance: Plugin, name: str | None) -> None:
    """Give a plugin to the session of that name, or set it free."""
    instance._session_name = name
