"""Whether a copy of this process can sit an exam."""

import sys

import torch

__all__ = ["forks"]


def forks() -> bool:
    """Tell whether a copy of this process can train: not where an accelerator is, or but on Linux.

    The threads of autograd, which devices have, and their memory don't outlive a fork.
    """
    return sys.platform == "linux" and not torch.accelerator.is_available()
