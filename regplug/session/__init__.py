"""One attached loop: what fires its events, and what it keeps."""

from regplug.session.session import Session, attach

__all__ = ["Session", "attach"]
