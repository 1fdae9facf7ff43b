"""The exam that every plugin sits, built-in or not: :func:`check_plugin`, :class:`PluginContract`.

>>> from regplug.testing import check_plugin
>>> print(check_plugin("l2(1e-3)", checks=["finite-difference"]).of("failed"))
()
"""

from regplug.testing.contract import PluginContract
from regplug.testing.exam import check_plugin
from regplug.testing.processes import stop_processes
from regplug.testing.registry import CHECKS, EXAM
from regplug.testing.report import Report, Result

__all__ = ["CHECKS", "EXAM", "PluginContract", "Report", "Result", "check_plugin", "stop_processes"]
