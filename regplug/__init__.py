"""Regularizers as plugins, attached to any PyTorch training loop with one line.

>>> import regplug, torch
>>> model = torch.nn.Linear(4, 2)
>>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
>>> session = regplug.attach(model, optimizer, ["l1(1e-5)", "weight_decay(0.1)"])

See :func:`attach`, :class:`Session`, and :class:`Penalty` to write a plugin.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from regplug import errors, schedules, sessions
    from regplug.backend import lent
    from regplug.backend.blocks import scratch
    from regplug.backend.captured import refuse_capture
    from regplug.backend.eager import called_by_a_graph
    from regplug.backend.layouts import Layout
    from regplug.backend.marks import is_hook
    from regplug.backend.precision import HALVES, widened
    from regplug.backend.shards import full, like, local, part
    from regplug.backend.sums import Sum, summed, total
    from regplug.bases.adaptive import Adaptive
    from regplug.bases.joint import JointPenalty
    from regplug.bases.selective import Selective
    from regplug.delivery.terms import zeros
    from regplug.hookspecs import hookimpl, hookspec
    from regplug.kernels.elementwise import Elementwise
    from regplug.kernels.iterated import iterated
    from regplug.kernels.rows import RowKernel
    from regplug.penalty import Penalty
    from regplug.plugin import Plugin, Scheduled
    from regplug.selection import in_use
    from regplug.selection.coverage import Coverage
    from regplug.selection.patterns import Patterns
    from regplug.selection.where import Selection
    from regplug.session.attach import attach
    from regplug.session.session import Session
    from regplug.view import SessionView

__all__ = [
    "HALVES",
    "Adaptive",
    "Coverage",
    "Elementwise",
    "JointPenalty",
    "Layout",
    "Patterns",
    "Penalty",
    "Plugin",
    "RowKernel",
    "Scheduled",
    "Selection",
    "Selective",
    "Session",
    "SessionView",
    "Sum",
    "attach",
    "called_by_a_graph",
    "errors",
    "full",
    "hookimpl",
    "hookspec",
    "in_use",
    "is_hook",
    "iterated",
    "lent",
    "like",
    "local",
    "part",
    "refuse_capture",
    "schedules",
    "scratch",
    "sessions",
    "summed",
    "total",
    "widened",
    "zeros",
]

__version__ = "0.2.0"

# Where the names are. Each is imported when it is first asked for: who only writes a plugin needs
# no session, and a command that lists what is installed needs neither.
_HOMES = {
    "HALVES": "regplug.backend.precision",
    "Adaptive": "regplug.bases.adaptive",
    "Coverage": "regplug.selection.coverage",
    "Elementwise": "regplug.kernels.elementwise",
    "JointPenalty": "regplug.bases.joint",
    "Layout": "regplug.backend.layouts",
    "Patterns": "regplug.selection.patterns",
    "Penalty": "regplug.penalty",
    "Plugin": "regplug.plugin",
    "Scheduled": "regplug.plugin",
    "Selection": "regplug.selection.where",
    "Selective": "regplug.bases.selective",
    "Session": "regplug.session.session",
    "SessionView": "regplug.view",
    "Sum": "regplug.backend.sums",
    "attach": "regplug.session.attach",
    "called_by_a_graph": "regplug.backend.eager",
    "RowKernel": "regplug.kernels.rows",
    "full": "regplug.backend.shards",
    "iterated": "regplug.kernels.iterated",
    "refuse_capture": "regplug.backend.captured",
    "hookimpl": "regplug.hookspecs",
    "hookspec": "regplug.hookspecs",
    "is_hook": "regplug.backend.marks",
    "like": "regplug.backend.shards",
    "local": "regplug.backend.shards",
    "part": "regplug.backend.shards",
    "scratch": "regplug.backend.blocks",
    "summed": "regplug.backend.sums",
    "total": "regplug.backend.sums",
    "widened": "regplug.backend.precision",
    "zeros": "regplug.delivery.terms",
}

_MODULES = {"in_use": "regplug.selection.in_use", "lent": "regplug.backend.lent"}

if not TYPE_CHECKING:  # to a type checker the names are those above, and no others

    def __getattr__(name: str) -> object:
        if name in _HOMES:
            found = getattr(import_module(_HOMES[name]), name)
        elif name.startswith("_"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        else:
            path = _MODULES.get(name, f"{__name__}.{name}")
            try:
                found = import_module(path)
            except ModuleNotFoundError as error:
                if error.name != path:
                    raise
                raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
