"""CUDA graphs: what is captured once and replayed is not asked again, so nothing here may be in it.

A graph has the strength of the step that it was captured in, and its replays count no steps. So
whatever a session does refuses to be captured, rather than be frozen in silence.
"""

from collections.abc import Iterable

import torch

from regplug.backend.groups import Group
from regplug.errors import UnsupportedError

__all__ = ["is_capturing", "refuse_capture", "refuse_captured_step"]


def is_capturing() -> bool:
    """Whether a CUDA graph is being captured here and now. It costs nothing without CUDA."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def refuse_capture(what: str, way_out: str) -> None:
    """Raise an error if a CUDA graph is being captured.

    Args:
        what: what would be frozen in it.
        way_out: what to do instead.

    Raises:
        UnsupportedError: one is.

    >>> refuse_capture("the strength now", "capture it without the penalty")
    """
    if is_capturing():
        raise UnsupportedError(
            f"a CUDA graph is being captured, and each of its replays would have {what}: {way_out}"
        )


def refuse_captured_step(groups: Iterable[Group]) -> None:
    """Raise an error if a step of these groups is being captured.

    Raises:
        UnsupportedError: it is.
    """
    for group in groups:
        parameters = group["params"]
        if parameters and parameters[0].is_cuda:
            refuse_capture(
                "the strengths and rates of this step, and count no step",
                "capture forward and backward alone, and call optimizer.step() outside of the "
                "graph, after its replay; or detach() the session before the capture",
            )
            return
