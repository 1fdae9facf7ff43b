"""One attached loop: what fires its events, and what it keeps."""

from regplug.session.attach import attach
from regplug.session.session import Session

__all__ = ["Session", "attach"]
