"""Every fit draws the same random numbers, whichever process it runs in and whatever ran before.

All strengths of one fold share a seed: they start from the same weights and see the same batches,
so that scores differ by the strength and not by luck (common random numbers).
"""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch

__all__ = ["seed_for", "seeded"]


def seed_for(seed: int, fold: int) -> int:
    """Return the seed of a fold's fits, a whole number below 2³².

    >>> seed_for(0, 1) == seed_for(0, 1) != seed_for(0, 2)
    True
    """
    return int(np.random.SeedSequence([seed, fold]).generate_state(1)[0])


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python, NumPy and torch, and put their generators back afterwards."""
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=cuda):
        try:
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
