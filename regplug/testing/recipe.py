"""How a plugin was made, and how it is made with other arguments: :class:`Recipe`."""

import copy
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from regplug.discovery.arguments import signature
from regplug.discovery.catalog import load_class
from regplug.discovery.specs import parse
from regplug.errors import RegplugError
from regplug.plugin import Plugin

__all__ = ["Recipe", "recipe_of", "scheduled_name"]

_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class Recipe:
    """A class and the arguments it was called with, each by its name.

    Args:
        cls: the class.
        given: the arguments.
        positional: those that have no name, for a constructor with ``*args``.

    Attributes:
        given: see there.
        parameters: the names that the constructor can be called with.
        takes_any: whether it has ``**kwargs``, so that no word is refused for its name alone.
    """

    def __init__(
        self, cls: Callable[..., Plugin], given: Mapping[str, Any], positional: tuple[Any, ...] = ()
    ) -> None:
        self._cls, self._positional = cls, positional
        self.given = dict(given)
        known = signature(cls).parameters.values()  # type: ignore[arg-type]
        self._defaults = {p.name: p.default for p in known if p.default is not p.empty}
        self.parameters = [p.name for p in known if p.kind in _BY_NAME]
        self.takes_any = any(p.kind is p.VAR_KEYWORD for p in known)

    @property
    def values(self) -> dict[str, Any]:
        """What it is called with, defaults among it."""
        return {**self._defaults, **self.given}

    def takes(self, name: str) -> bool:
        """Tell whether it may be called with this argument."""
        return self.takes_any or name in self.parameters

    def but(self, **changes: Any) -> Callable[[], Plugin]:
        """Return what makes a plugin with some arguments changed, its own copies of the others."""
        return partial(self._make, changes)

    def _make(self, changes: Mapping[str, Any]) -> Plugin:
        return self._cls(*self._positional, **{**copy.deepcopy(self.given), **changes})


def recipe_of(source: Any, plugin: Plugin) -> Recipe | None:
    """Return how ``source`` makes its plugin, or None where that can't be seen.

    Args:
        source: a spec, a class or partial of one; or an instance or a callable of another kind, of
            which the arguments are read from attributes of the same names.
        plugin: what it made.
    """
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(source, str):
        name, args, kwargs = parse(source)
        cls: Any = load_class(name)
    else:
        while isinstance(source, partial):
            args, kwargs = (*source.args, *args), {**source.keywords, **kwargs}
            source = source.func
        cls = source if isinstance(source, type) else type(plugin)
        if cls is not source:
            args, kwargs = (), _attributes(cls, plugin)
    try:
        bound = signature(cls).bind(*args, **kwargs)
    except TypeError:
        return None
    given, positional = dict(bound.arguments), ()
    for parameter in bound.signature.parameters.values():
        if parameter.kind is parameter.POSITIONAL_ONLY:
            return None
        if parameter.kind is parameter.VAR_POSITIONAL:
            positional = given.pop(parameter.name, ())
        elif parameter.kind is parameter.VAR_KEYWORD:
            given.update(given.pop(parameter.name, {}))
    if positional:  # then those before it have no name either
        given, positional = kwargs, args
    recipe = Recipe(cls, given, positional)
    return recipe if _works(recipe, plugin) else None


def _attributes(cls: type, plugin: Plugin) -> dict[str, Any]:
    found = {}
    for parameter in signature(cls).parameters.values():
        name = parameter.name
        if parameter.kind not in _BY_NAME or name == "name":
            continue
        # As it was set: reading a scheduled attribute gives its value now.
        for attribute in (name, scheduled_name(name)):
            value = vars(plugin).get(attribute, getattr(plugin, attribute, None))
            if value is not None:
                found[name] = value
                break
    return found


def scheduled_name(parameter: str) -> str:
    """Return by what other name an argument is read where a plugin has several strengths."""
    return f"{parameter}_strength"


def _works(recipe: Recipe, plugin: Plugin) -> bool:
    try:
        again = recipe.but()()
    except (RegplugError, TypeError, ValueError, AttributeError):
        return False
    return type(again) is type(plugin)
