"""What plugins that set rates of modules have in common: find them, set them, put them back."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import nn

from regplug import Patterns, Plugin, Scheduled, SessionView, hookimpl, sessions
from regplug.errors import SelectionError, SpecError
from regplug.schedules import Schedule
from regplug.strengths import ByPattern, Setting, StrengthLike
from regplug_builtins import _taken
from regplug_builtins._copies import in_copies, not_scripted
from regplug_builtins._rate import Rate
from regplug_builtins._targets import Target, settled

__all__ = ["Followed", "ScheduledRates", "Target", "is_rate"]


def is_rate(value: object) -> bool:
    """Whether an attribute's value can be a rate: a float within [0, 1], or one that is scheduled.

    >>> [is_rate(value) for value in (0.1, 2.0, 1, "0.1")]
    [True, False, False, False]
    """
    return isinstance(value, float | Rate) and 0 <= float(value) <= 1


class Followed(Scheduled):
    """A scheduled attribute that modules follow: set anew while attached, it reaches them at once.

    Raises:
        SpecError: as :class:`regplug.Scheduled`; or a constant is to become a schedule while it is
            attached.
    """

    def __set__(self, instance: Plugin, value: StrengthLike) -> None:
        assert isinstance(instance, ScheduledRates)
        before = vars(instance).get(self.name)
        super().__set__(instance, value)
        try:
            instance.refuse_other_patterns(before, vars(instance)[self.name])
            instance.follow()
        except SpecError:
            vars(instance)[self.name] = before
            instance._mapped = bool(instance.mappings)
            raise


class ScheduledRates(Plugin):
    """Base of the plugins that set probabilities of modules at each step.

    A subclass says which (:meth:`find`) and what each is to be (:meth:`rate_at`).
    """

    changes_weights = False
    reads_gradients = False
    by_pattern = True
    kind = "rate"
    """What is found, for messages."""

    where: list[str]
    _targets: Sequence[Target] = ()
    _rates: Sequence[Rate] = ()
    _settings: Sequence[Setting | None] = ()  # of each target, where rates are by pattern
    _labels: Mapping[str, Setting] = MappingProxyType({})  # what each of these is called
    _undo: Sequence[Callable[[], None]] = ()

    def find(self, model: nn.Module) -> Iterator[Target]:
        """Yield every rate of the model that this plugin knows."""
        raise NotImplementedError

    def leaves(self, session: SessionView, target: Target) -> bool:
        """Whether a target is another plugin's business in this session."""
        return False

    def ignored(self, target: Target) -> str | None:
        """Return why a rate is known to have no effect, or None."""
        return None

    def begin(self, targets: Sequence[Target]) -> None:
        """Prepare for these targets, before the first :meth:`rate_at`."""

    def rate_at(self, step: int, index: int, target: Target) -> float:
        """Return the rate of the ``index``-th target at ``step``."""
        raise NotImplementedError

    def schedules(self) -> list[object]:
        """Return the schedules that the rates follow."""
        return [v for k, v in vars(self).items() if k in self.strengths()]

    @property
    def moving(self) -> bool:
        """Whether the rates ever change. If not, plain floats serve."""
        return not all(
            schedule.constant
            if isinstance(schedule, ByPattern)
            else isinstance(schedule, Schedule) and len(set(schedule.bounds())) == 1
            for schedule in self.schedules()
        )

    @hookimpl
    def on_attach(self, session: SessionView) -> None:
        """Find the rates, remember them, and set those of the first step."""
        found = list(self.find(session.model))
        patterns = Patterns(self.where)
        matched = [t for t in found if patterns.takes(t.name, t.name.rpartition(".")[0])]
        targets = [target for target in matched if not self.leaves(session, target)]
        if mappings := self.mappings:
            targets, self._settings, self._labels = settled(
                self, mappings, self.kind, found, targets
            )
        if not targets:
            have = ", ".join(target.name for target in found[:6]) or "none at all"
            but = f" but {matched[0].name}, which another plugin is there for" if matched else ""
            raise SelectionError(
                f"{self.name}: where={self.where!r} matches no {self.kind}{but}; the model has "
                f"{have}"
            )
        others = [p for p in session.plugins if isinstance(p, ScheduledRates) and p is not self]
        taken = {(id(t.module), t.attribute) for other in others for t in other._targets}
        twice = [target for target in targets if (id(target.module), target.attribute) in taken]
        if twice:
            raise SpecError(f"{self.name}: {_set_twice(twice, targets)}")
        self._refuse_moved(session, targets)
        for target in targets:
            target.own = _taken.own(target.module, target.attribute, target.own)
        if all(self.ignored(target) for target in targets):
            warnings.warn(
                f"{self.name} has no effect: {self._without_effect(targets)}", stacklevel=2
            )
        self.begin(targets)
        values = [self._checked(session.steps, i, target) for i, target in enumerate(targets)]
        self._targets = targets
        if self.moving:
            # Equal rates that move together are one input of a compiled graph, not dozens.
            shared: dict[object, Rate] = {}
            self._rates = [
                shared.setdefault(
                    (self.together(i, target), *self._settings[i : i + 1]), Rate(value)
                )
                for i, (target, value) in enumerate(zip(targets, values, strict=True))
            ]
            self._keep_to_the_session(targets)
        for i, target in enumerate(targets):
            value = self._rates[i] if self._rates else values[i]
            _taken.take(target.module, target.attribute, value, target.own, self)

    def _refuse_moved(self, session: SessionView, targets: Sequence[Target]) -> None:
        """Refuse rates that another session moves."""
        moved: list[Target] = []
        holders: list[Plugin] = []
        for target in targets:
            found = _taken.holders(target.module, target.attribute)
            if isinstance(target.own, Rate) and found:
                moved.append(target)
                holders += found
        if moved:
            here = sessions.on(session.model)
            names = [s.name for s in here if any(p in s.plugins for p in holders)]
            by = f"moved by {f'session {names[0]!r}' if names else 'another session'}"
            raise SpecError(
                f"{self.name}: {_set_twice(moved, targets, by)}; or take that session off first, "
                "`for old in regplug.sessions.on(model): old.detach()`"
            )

    def _keep_to_the_session(self, targets: Sequence[Target]) -> None:
        undo: list[Callable[[], None]] = []
        self._undo = undo
        for module, name in {target.module: target.name for target in targets}.items():
            undo.append(in_copies(module, _as_floats))
            undo.append(not_scripted(module, f"{self.name} moves {name}"))

    def together(self, index: int, target: Target) -> object:
        """Return a key that is equal for targets whose rates are equal at every step."""
        return index

    def _checked(self, step: int, index: int, target: Target) -> float:
        mapping = next(iter(self.mappings.values())) if self._mapped else None
        if mapping is not None:
            mapping.now = self._settings[index]
        try:
            rate = self.rate_at(step, index, target)
        finally:
            if mapping is not None:
                mapping.now = None
        if not 0 <= rate <= 1:
            raise SpecError(f"{self.name}: {target.name} would get rate {rate:g} at step {step}")
        return rate

    def figures_by_pattern(self) -> dict[str, float]:
        """Return each rate by pattern, or by layer, under its name: ``rate/encoder.*``."""
        if not self._mapped:
            return {}
        found = {}
        for name, mapping in self.mappings.items():
            for label, setting in self._labels.items():
                mapping.now = setting
                try:
                    found[f"{name}/{label}"] = getattr(self, name)
                finally:
                    mapping.now = None
        return found

    def _set(self, step: int) -> None:
        for i, rate in enumerate(self._rates):
            rate.set(self._checked(step, i, self._targets[i]))

    def refuse_other_patterns(self, before: object, now: object) -> None:
        """Refuse, while it is attached, patterns that its modules were not sorted by."""
        if not self._targets or not isinstance(now, ByPattern):
            return
        if not isinstance(before, ByPattern) or (
            (list(before.entries), before.decays) != (list(now.entries), now.decays)
        ):
            raise SpecError(f"{self.name} is attached: detach() before it gets other patterns")
        now.settle(before.factors)

    def follow(self) -> None:
        """Set the modules that it is attached to, if to any, to the rates of now."""
        if self._rates:
            self._set(self._step)
        elif self._targets and self.moving:
            raise SpecError(
                f"{self.name} is attached with a constant: detach() before it gets a schedule"
            )
        else:
            values = [self._checked(self._step, i, t) for i, t in enumerate(self._targets)]
            for value, target in zip(values, self._targets, strict=True):
                _taken.take(target.module, target.attribute, value, target.own, self)

    @hookimpl
    def after_step(self, session: SessionView) -> None:
        """Set the rates of the next step."""
        self._set(session.steps + 1)

    @hookimpl
    def on_load_state(self, session: SessionView) -> None:
        """Set the rates of the step that the session goes on from."""
        self._set(session.steps)

    @hookimpl
    def on_detach(self, session: SessionView) -> None:
        """Give each module its own rate back."""
        for target in self._targets:
            _taken.give_back(target.module, target.attribute, self)
        for undo in self._undo:
            undo()
        self._targets, self._rates, self._undo = (), (), ()
        self._settings, self._labels = (), {}

    def covers(self, session: SessionView) -> None:
        """Rates are of modules, not of weights."""

    def agreement(self, session: SessionView) -> Mapping[str, Any]:
        """Return the settings, and the rates that they come to in this model."""
        return {**super().agreement(session), "covers": [target.name for target in self._targets]}

    def acts(self, session: SessionView) -> str:
        """Return how many rates are set."""
        count = len(self._targets)
        idle = sum(self.ignored(target) is not None for target in self._targets)
        kind = f"{count} {self.kind}{'' if count == 1 else 's'}"
        if idle:
            return (
                f"{kind}, {'' if idle == count else f'{idle} of them '}without effect, after_step"
            )
        return f"{kind}, after_step"

    def _without_effect(self, targets: Sequence[Target]) -> str:
        names: dict[str, list[str]] = {}
        for target in targets:
            if why := self.ignored(target):
                names.setdefault(why, []).append(target.name)
        return "; ".join(f"{', '.join(those)} {why}" for why, those in names.items())

    def notes(self, session: SessionView) -> list[str]:
        """Return the rates that are set, and which of them torch can't compile."""
        lines = []
        if self._targets:
            names = (f"{target.name} (own {target.own:g})" for target in self._targets)
            lines.append("sets " + ", ".join(names))
        if by_pattern := self.figures_by_pattern():
            each = (f"{name} {value:g}" for name, value in by_pattern.items())
            lines.append("by pattern: " + ", ".join(each))
        if without := self._without_effect(self._targets):
            lines.append(f"without effect: {without}")
        if self._rates:
            for kind, what in _NOT_COMPILED.items():
                stuck = [t.name for t in self._targets if isinstance(t.module, kind)]
                if stuck:
                    lines.append(f"under torch.compile {what}: {', '.join(stuck)}")
        return lines


def _set_twice(
    twice: Sequence[Target], targets: Sequence[Target], by: str = "set by another plugin"
) -> str:
    """Return what to say of rates that have a master already, with a line to copy."""
    count, names = len(twice), {target.name for target in twice}
    # One pattern that tells them from the rest, if there is one.
    exclude = [f"!*.{attribute}" for attribute in dict.fromkeys(t.attribute for t in twice)]
    others = Patterns(exclude)
    hit = {t.name for t in targets if not others.takes(t.name)}
    if count == 1 or hit != names:
        exclude = [f"!{target.name}" for target in twice]
    who = f"{twice[0].name} is" if count == 1 else f"{twice[0].name} and {count - 1} more are"
    them = "it" if count == 1 else "them"
    of_which = "the other" if count == len(targets) else "one of the two"
    return f"{who} {by} already: exclude {them} from {of_which}, as with where={['*', *exclude]!r}"


def _as_floats(attributes: dict[str, Any]) -> None:
    for name, value in attributes.items():
        if isinstance(value, Rate):
            attributes[name] = float(value)


_NOT_COMPILED: dict[type[nn.Module], str] = {
    nn.MultiheadAttention: "a moving rate breaks the graph here, and the attention runs eagerly",
    nn.RNNBase: "torch runs this layer eagerly, whatever its rate",
}
