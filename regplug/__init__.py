"""Regularizers as plugins, attached to any PyTorch training loop with one line.

>>> import regplug, torch
>>> model = torch.nn.Linear(4, 2)
>>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
>>> session = regplug.attach(model, optimizer, ["l1(1e-5)", "weight_decay(0.1)"])

See :func:`attach`, :class:`Session`, and :class:`Penalty` to write a plugin.
"""

from regplug import errors, schedules, sessions
from regplug.backend import lent
from regplug.backend.blocks import scratch
from regplug.backend.captured import refuse_capture
from regplug.backend.eager import called_by_a_graph
from regplug.backend.layouts import Layout
from regplug.backend.shards import full, like, local, part
from regplug.backend.sums import Sum
from regplug.hookspecs import hookimpl, hookspec
from regplug.kernels.iterated import iterated
from regplug.kernels.rows import RowKernel
from regplug.penalty import Penalty
from regplug.plugin import Plugin, Scheduled
from regplug.selection import in_use
from regplug.selection.coverage import Coverage
from regplug.selection.where import Selection
from regplug.session import Session, attach
from regplug.view import SessionView

__all__ = [
    "Coverage",
    "Layout",
    "Penalty",
    "Plugin",
    "RowKernel",
    "Scheduled",
    "Selection",
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
    "iterated",
    "lent",
    "like",
    "local",
    "part",
    "refuse_capture",
    "schedules",
    "scratch",
    "sessions",
]

__version__ = "0.1.0"
