"""Whole exams, of which each is sat once for all tests that ask for it."""

from functools import cache, partial

from regplug.testing import Report, check_plugin


def whole(plugin) -> Report:
    """Return the report of the whole exam of a class, or of a partial of one."""
    if isinstance(plugin, partial):
        return _sat(plugin.func, plugin.args)
    return _sat(plugin, ())


@cache
def _sat(cls, args) -> Report:
    return check_plugin(partial(cls, *args) if args else cls)
