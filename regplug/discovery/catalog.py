"""Names and specs turned into plugin instances, by way of the installed entry points.

>>> parse("l1(linear(0, 1e-4, steps=1000), where='encoder.*')")
('l1', (linear(0, 0.0001, steps=1000),), {'where': 'encoder.*'})
>>> parse("l1=1e-5")
('l1', (1e-05,), {})
"""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from regplug.backend.words import nearest
from regplug.discovery import files
from regplug.discovery.arguments import misfit, signature
from regplug.discovery.specs import LONGEST, parse, quoted
from regplug.errors import (
    PluginError,
    PluginNotFoundError,
    RegplugError,
    SelectionError,
    SpecError,
)
from regplug.installed import Offer, distribution_of, offers
from regplug.plugin import Plugin

__all__ = ["did_you_mean", "find", "load", "load_all", "load_class", "names"]


def load(spec: str) -> Plugin:
    """Return a plugin made from ``spec``.

    Only the named plugin is imported; a broken one elsewhere disturbs nobody. A spec may name a
    class in a file instead, ``'./file.py:Class(1e-3)'``: that file is executed.

    Raises:
        SpecError: the spec is no call with literal arguments, or its arguments are wrong.
        PluginNotFoundError: no installed distribution offers a plugin of that name.
        PluginError: it does not load, is no plugin class, or two distributions offer it.

    >>> load("l1(1e-5)").strength
    1e-05
    """
    if isinstance(spec, str) and (in_file := files.split(spec)) is not None:
        return _of_file(spec, in_file)
    try:
        name, args, kwargs = parse(spec)
    except SpecError as error:
        if guess := did_you_mean(spec):
            raise SpecError(f"{quoted(spec)} is no spec such as 'name(1e-5)'{guess}") from error
        raise
    try:
        cls = load_class(name)
    except PluginNotFoundError as error:
        error.args = (f"{error}{did_you_mean(spec)}",)
        raise
    wanted = signature(cls)
    if wrong := misfit(wanted, args, kwargs):
        raise SpecError(
            f"{spec!r}: {wrong}{did_you_mean(spec) or _example(name, wanted, args, kwargs)} "
            f"The plugin is {name}{wanted}"
        )
    return _make(name, cls, spec, args, kwargs)


def _of_file(spec: str, in_file: files.FileSpec) -> Plugin:
    """Return a plugin of a class that stands in a file of its own."""
    try:
        _, args, kwargs = parse(in_file.as_call)
    except SpecError as error:  # before the file is executed
        raise SpecError(f"{quoted(spec)}: {error}") from error
    cls = files.class_in(in_file.path, in_file.cls)
    name, wanted = cls.__name__, signature(cls)
    if wrong := misfit(wanted, args, kwargs):
        raise SpecError(f"{quoted(spec)}: {wrong}. The plugin is {name}{wanted}")
    return _make(name, cls, spec, args, kwargs)


def _make(
    name: str, cls: type[Plugin], spec: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Plugin:
    try:
        return cls(*args, **kwargs)
    except (SpecError, SelectionError) as error:
        error.args = (f"{spec!r}: {error}",)
        raise
    except RegplugError:
        raise
    except (TypeError, ValueError) as error:
        raise SpecError(f"{spec!r}: {error}") from error
    except Exception as error:
        raise PluginError(
            f"{name} ({' '.join(distribution_of(cls)).strip()}) failed on {spec!r}: "
            f"{type(error).__name__}: {error}"
        ) from error


def _example(
    name: str, wanted: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> str:
    """Return a spec to copy, where a strength is all that is missing."""
    required = [p.name for p in wanted.parameters.values() if p.default is p.empty]
    missing = not args and not kwargs and required == ["strength"]
    return f", as in '{name}(1e-4)'." if missing else "."


def load_all(plugins: object) -> list[Plugin]:
    """Return the plugins of a list of specs and instances.

    Raises:
        SpecError: it is no list, or a member is neither; the message says what it probably means.
        PluginNotFoundError: as from :func:`load`.
        PluginError: likewise.

    >>> [plugin.name for plugin in load_all(["l1(1e-4)", "l2(1e-4)"])]
    ['l1', 'l2']
    """
    if isinstance(plugins, str | Plugin | type):
        plugins = [plugins]
    if isinstance(plugins, bytes | Mapping) or not isinstance(plugins, Iterable):
        raise SpecError(
            "plugins must be a list of specs such as 'name(1e-5)' and plugin instances, "
            f"got {plugins!r}{did_you_mean(plugins)}"
        )
    plugins = list(plugins)
    for plugin in plugins:
        if not isinstance(plugin, str | Plugin):
            raise SpecError(
                "a plugin must be a spec (a string) or an instance of regplug.Plugin"
                f"{_instead(plugin, plugins)}"
            )
    return [plugin if isinstance(plugin, Plugin) else load(str(plugin)) for plugin in plugins]


def _instead(plugin: object, plugins: list[object]) -> str:
    if isinstance(plugin, type) and issubclass(plugin, Plugin):
        made = f"{plugin.__name__}{signature(plugin)}"
        return f", not the class; got {plugin!r}, of which an instance is {made}"
    hint = ", not the class" if isinstance(plugin, type) else ""
    return f"{hint}; got {plugin!r}{did_you_mean(plugin) or did_you_mean(plugins)}"


def did_you_mean(wish: object) -> str:
    """Return the words that name what ``wish`` probably means, or none.

    >>> did_you_mean({"l1": 1e-4})
    ": did you mean 'l1(0.0001)'?"
    """

    def works(spec: str) -> bool:
        try:
            name, args, kwargs = parse(spec)
            cls = load_class(name)
            _make(name, cls, spec, args, kwargs)
        except RegplugError:
            return False
        return spec != wish

    def parameters(name: str) -> Iterable[inspect.Parameter]:
        try:
            return signature(load_class(name)).parameters.values()
        except RegplugError:
            return ()

    from regplug.discovery.mistakes import meant  # of no use until there is one

    if isinstance(wish, str) and len(wish) > LONGEST:
        return ""
    found = meant(wish, names(), parameters, works)
    if not found:
        return ""
    return f": did you mean {found[0]!r}?" if len(found) == 1 else f": did you mean {found!r}?"


def names() -> list[str]:
    """Return the names of all installed plugins; none of them is imported."""
    return sorted({offer.name for offer in offers()})


def find(name: str, *, anew: bool = False) -> Offer:
    """Return the one entry point called ``name``, without loading it.

    Args:
        name: of the plugin.
        anew: whether what is installed is read again before; it is in any case if there is none.

    Raises:
        PluginNotFoundError: there is none; the message shows the nearest names.
        PluginError: two distributions offer it, or one offers it twice.
    """
    found = [offer for offer in offers(anew=anew) if offer.name == name]
    if not found and not anew:
        return find(name, anew=True)
    if not found:
        close = ", ".join(nearest(name, names())) or "nothing at all"
        raise PluginNotFoundError(
            f"no installed plugin is called {name!r}; the nearest are {close} "
            "(`regplug plugins` lists all)"
        )
    if len(found) > 1:
        who = " and ".join(f"{offer.source} ({offer.value})" for offer in found)
        raise PluginError(f"the plugin name {name!r} is taken twice, by {who}: uninstall one")
    return found[0]


def load_class(name: str) -> type[Plugin]:
    """Return the plugin class called ``name``.

    Raises:
        PluginNotFoundError: there is none; the message shows the nearest names.
        PluginError: it does not load, is no subclass of :class:`regplug.Plugin`, or is taken twice.
    """
    offer = find(name)
    try:
        cls = offer.entry_point.load()
    except (Exception, SystemExit) as error:
        if find(name, anew=True).value != offer.value:  # installed anew, with its class elsewhere
            return load_class(name)
        raise PluginError(
            f"the plugin {name!r} of {offer.source} does not load from {offer.value}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, Plugin)):
        raise PluginError(
            f"the entry point {name!r} of {offer.source} is {cls!r}, which is no subclass of "
            "regplug.Plugin"
        )
    return cls
