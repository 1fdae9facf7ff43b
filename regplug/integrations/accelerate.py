"""Accelerate: its checkpoints hold the sessions' state, each under its session's name.

Nothing is to be done for it: ``regplug.attach`` sees what Accelerate prepared. See
``regplug.session.accelerate``.
"""

from regplug.session.accelerate import FOLDER, connect, is_wrapper, owners

__all__ = ["FOLDER", "connect", "is_wrapper", "owners"]
