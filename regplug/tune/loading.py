"""Plugins from specs, many times over: a search makes thousands, of a few classes."""

import functools

from regplug import Plugin
from regplug.discovery.catalog import load, load_class
from regplug.discovery.specs import parse

__all__ = ["new_plugin"]


def new_plugin(spec: str) -> Plugin:
    """Return what ``catalog.load`` returns, looking a name up once in a process.

    A look-up reads the metadata of every installed distribution, which takes as long as many a fit.

    Raises:
        RegplugError: as :func:`regplug.discovery.catalog.load` says.

    >>> new_plugin("l1(0.5)").strength
    0.5
    """
    name, args, kwargs = parse(spec)
    try:
        return _class_of(name)(*args, **kwargs)
    except Exception:
        return load(spec)  # which raises the error that says what is wrong


@functools.lru_cache
def _class_of(name: str) -> type[Plugin]:
    return load_class(name)
