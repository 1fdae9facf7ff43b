"""Who sits the exam: one plugin, and what can be known of it before the first question."""

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cached_property
from typing import Any

import torch

from regplug.backend.marks import is_hook
from regplug.bases.delivered import Delivered
from regplug.bases.joint import JointPenalty
from regplug.errors import PluginError, RegplugError
from regplug.penalty import Penalty
from regplug.plugin import Plugin, Scheduled
from regplug.testing.bench import Bench, Rig, Setup, Snapshot, difference
from regplug.testing.recipe import Recipe, recipe_of
from regplug.testing.surroundings import Surroundings

__all__ = ["Failure", "Skip", "Source", "Subject"]

Source = str | Plugin | Callable[[], Plugin]

# Where a schedule that starts at 0 is looked at for a value that does something.
_LATER = (0, 1, 10, 100, 1_000, 10_000, 100_000)
_LOUD = 0.05
_NO_OPERATORS = (Penalty.proximal, JointPenalty.proximal)


class Failure(AssertionError):  # noqa: N818 - the plugin's, not the exam's
    """A check failed; the message says in what."""


class Skip(Exception):  # noqa: N818 - it is no error
    """A check does not apply; the message says why."""


class Subject:
    """One plugin under exam.

    Args:
        source: a spec, an instance (copied for each use), or a callable that returns a new one.
        bench: the model and data to try it on.
        values: attributes that are set on each instance, such as ``where``.
    """

    def __init__(
        self, source: Source, bench: Bench, values: Mapping[str, Any] | None = None
    ) -> None:
        self.source, self.bench, self.values = source, bench, dict(values or {})
        self.workers_results: dict[Any, Any] = {}
        self._touched: dict[str | None, list[str]] = {}
        # Before anything is attached: what is left behind once would not be seen later.
        self.surroundings = Surroundings()
        self.left_behind: str | None = None
        self._looked_back = False

    def look_back(self) -> None:
        """Note, after it was attached and detached for the first time, what it has left behind."""
        if not self._looked_back:
            self._looked_back = True
            self.left_behind = self.surroundings.changed(long_ago=True)

    def sits_on(self, bench: Bench) -> None:
        """Let it be tried on another model from now on."""
        self.bench = bench
        self.workers_results.clear()
        self._touched.clear()
        self.__dict__.pop("deliveries", None)

    @property
    def title(self) -> str:
        """The spec, or the plugin's name."""
        return self.source if isinstance(self.source, str) else self.plugin.name

    @cached_property
    def plugin(self) -> Plugin:
        """An instance to look at, never attached."""
        plugin = Setup(self.source, None, self.values).make()
        if not isinstance(plugin, Plugin):
            raise PluginError(f"{plugin!r} is no instance of regplug.Plugin")
        return plugin

    @cached_property
    def recipe(self) -> Recipe:
        """How it is made with other arguments.

        Raises:
            Skip: that can't be seen.
        """
        if (recipe := recipe_of(self.source, self.plugin)) is None:
            raise Skip("it can't be made with other arguments: give a spec, or its class")
        return recipe

    @property
    def penalty(self) -> Penalty:
        """A new instance of a penalty, loud enough to be heard.

        Raises:
            Skip: it is no penalty.
        """
        plugin = self.loud(None).make()
        if not isinstance(plugin, Penalty):
            raise Skip("it is no Penalty, so there is no value(w)")
        return plugin

    def implements(self, hook: str) -> bool:
        """Tell whether the plugin has this hook."""
        return is_hook(getattr(type(self.plugin), hook, None))

    @cached_property
    def remembers(self) -> bool:
        """Whether it may act otherwise in each step: it has a state, or draws at random."""
        return self.implements("on_state") or self.plugin.stochastic

    @cached_property
    def adds_to_loss(self) -> bool:
        """Whether it is a plugin of another kind than a penalty, with a term of the loss."""
        return self.implements("on_loss") and not isinstance(self.plugin, Delivered)

    @property
    def has_operator(self) -> bool:
        """Whether it is a penalty with a proximal operator, of one weight or of several."""
        found = getattr(type(self.plugin), "proximal", None)
        return isinstance(self.plugin, Delivered) and found not in _NO_OPERATORS

    @cached_property
    def scheduled(self) -> dict[str, Scheduled]:
        """The attributes that are set to a number or a schedule, as far as they are in use."""
        return {
            name: attribute
            for cls in reversed(type(self.plugin).__mro__)
            for name, attribute in vars(cls).items()
            if isinstance(attribute, Scheduled) and name in self.plugin.strengths()
        }

    @cached_property
    def off(self) -> dict[str, float]:
        """What turns it off, by attribute; empty where nothing does."""
        return {name: a.off for name, a in self.scheduled.items() if a.off is not None}

    @cached_property
    def deliveries(self) -> list[str | None]:
        """The deliveries that a penalty can be given; None alone for other plugins."""
        if not isinstance(self.plugin, Delivered):
            return [None]
        if self.plugin.delivery != "auto":
            return [self.plugin.delivery]
        found: list[str | None] = ["step", "loss"]
        if self.has_operator:
            found.append("proximal")
        usable = [delivery for delivery in found if self._attaches(delivery)]
        return usable or found

    def _attaches(self, delivery: str | None) -> bool:
        try:
            Rig(self.bench, self.given(delivery)).detach()
        except RegplugError:
            return False
        return True

    def given(self, delivery: str | None) -> Setup:
        """Return the plugin as its author specified it."""
        return Setup(self.source, delivery, self.values)

    def steady(self) -> Mapping[str, float]:
        """Return a constant that does something for every scheduled attribute."""
        return {
            name: _steady(attribute.schedule(self.plugin), attribute.off)
            for name, attribute in self.scheduled.items()
        }

    def by_pattern(
        self, values: Mapping[str, float], change: Callable[[float], Any] = lambda value: value
    ) -> dict[str, Any]:
        """Return values for all attributes, and where strengths are by pattern their mappings.

        Args:
            values: the largest of each attribute.
            change: what is made of each value.
        """
        found: dict[str, Any] = {name: change(value) for name, value in values.items()}
        for name, mapping in self.plugin.mappings.items():
            if name not in values:
                continue
            off = self.scheduled[name].off
            largest = _steady(mapping, off)
            scale = values[name] / largest if largest else 1.0

            def changed(
                schedule: Callable[[int], float], off: float | None = off, scale: float = scale
            ) -> Any:
                return change(_steady(schedule, off) * scale)

            found[name] = mapping.each(changed)
        return found

    def loud(self, delivery: str | None) -> Setup:
        """Return it with constant strengths, those of a penalty no weaker than can be measured."""
        return Setup(self.source, delivery, {**self.values, **self.by_pattern(self._loud())})

    def _loud(self) -> dict[str, float]:
        """Return the constants of :meth:`loud`, where strengths are by pattern the largest."""
        values = dict(self.steady())
        if isinstance(self.plugin, Delivered):
            for name, attribute in self.scheduled.items():
                if attribute.off == 0 and attribute.high >= _LOUD:
                    values[name] = max(values[name], _LOUD)
        return values

    def changed(
        self, setup: Setup, change: Callable[[float], float], names: Collection[str] | None = None
    ) -> Setup:
        """Return a loud setup with other constants; strengths by pattern are changed each.

        Args:
            setup: the setup.
            change: what is made of each constant.
            names: of which scheduled attributes; None for those that can turn it off, for another
                one is no strength, and may have a range of its own.
        """
        names = [name for name, off in self.off.items() if off == 0] if names is None else names
        loud = {n: v for n, v in self._loud().items() if n in names}
        return setup.but(**self.by_pattern(loud, change))

    def only(self, setup: Setup, where: str) -> Setup:
        """Return a setup that covers nothing but ``where``, with one strength for all of it.

        Of strengths by pattern, those of other weights would have nothing left to match.
        """
        alike = {key: self.steady()[key] for key in self.plugin.mappings}
        return setup.but(**alike, where=where)

    def moments(self, setup: Setup) -> Iterator[Setup]:
        """Yield a setup, and the same with the values that its schedules come to later.

        A share of what is there does nothing at 1, as a strength at 0.
        """
        yield setup
        told = [dict(setup.values)]
        for step in _LATER:
            values = {n: a.at(self.plugin, step) for n, a in self.scheduled.items()}
            if values not in told:
                told.append(values)
                yield Setup(setup.source, setup.delivery, {**self.values, **values})

    def setups(self) -> list[Setup]:
        """Return one loud setup for each delivery."""
        return [self.loud(delivery) for delivery in self.deliveries]

    def rig(self, setup: Setup | None, **options: Any) -> Rig:
        """Return a model with the plugin attached."""
        return Rig(self.bench, setup, **options)

    def touched(self, setup: Setup) -> list[str]:
        """Return the names of the weights that one step leaves otherwise than without the plugin.

        Raises:
            Skip: there is none.
        """
        if setup.delivery not in self._touched:
            found, without = self.rig(setup).run(1).weights, self.rig(None).run(1).weights
            names = [name for name, w in without.items() if not torch.equal(w, found[name])]
            self._touched[setup.delivery] = names
        if not self._touched[setup.delivery]:
            raise Skip("it changed no weight in the first step here")
        return self._touched[setup.delivery]


def _steady(schedule: Callable[[int], float], off: float | None) -> float:
    at = [schedule(step) for step in _LATER]
    return next((value for value in at if value != off), at[0])


def same(
    found: Snapshot,
    expected: Snapshot,
    what: str,
    *,
    rtol: float = 1e-7,
    atol: float = 1e-9,
) -> None:
    """Raise a :class:`Failure` that says ``what`` if two snapshots differ."""
    gap = difference(found, expected, rtol=rtol, atol=atol)
    if gap is not None:
        raise Failure(f"{what}: {gap}")
