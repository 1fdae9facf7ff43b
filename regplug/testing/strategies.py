"""Strategies of `hypothesis <https://hypothesis.readthedocs.io>`_ for tests of an author's own.

They draw what formulas stumble over. ``pip install "regplug[testing]"`` brings hypothesis.

>>> from hypothesis import given
>>> from regplug.testing import strategies
>>> @given(strategies.weights(), strategies.steps())
... def shrinks(w, step):
...     assert (0.9**step * w).abs().sum() <= w.abs().sum()
>>> shrinks()
"""

import math
from collections.abc import Sequence

import torch
from hypothesis import strategies as st

__all__ = ["shapes", "steps", "weights"]


def shapes(
    *, least_dimensions: int = 0, most_dimensions: int = 4, most_elements: int = 64
) -> st.SearchStrategy[tuple[int, ...]]:
    """Draw shapes of weights: scalars, biases, matrices with one row, kernels of convolutions.

    Args:
        least_dimensions: 0 draws the shape ``()`` too.
        most_dimensions: 4 draws the shapes of two-dimensional convolutions too.
        most_elements: that a tensor of the shape has.

    Returns:
        A strategy for tuples of positive integers.
    """
    sizes = st.lists(
        st.integers(1, most_elements), min_size=least_dimensions, max_size=most_dimensions
    )
    return sizes.map(lambda found: _shrunk(found, most_elements))


def _shrunk(sizes: Sequence[int], most: int) -> tuple[int, ...]:
    found: list[int] = []
    for size in sizes:
        found.append(min(size, max(1, most // math.prod(found))))
    return tuple(found)


def weights(
    shape: st.SearchStrategy[tuple[int, ...]] | None = None,
    *,
    dtype: torch.dtype = torch.float64,
    largest: float = 1e3,
) -> st.SearchStrategy[torch.Tensor]:
    """Draw weights: zeros of both signs, equal ones, tiny ones, and ones up to ``largest``.

    Args:
        shape: of the weights; :func:`shapes` by default.
        dtype: of the tensor, a floating one.
        largest: absolute value.

    Returns:
        A strategy for tensors without a gradient, contiguous or with their last two dimensions
        swapped in memory.
    """
    smallest = torch.finfo(dtype).tiny
    element = st.one_of(
        st.floats(-largest, largest, allow_subnormal=False, width=64),
        st.sampled_from([0.0, -0.0, 1.0, -1.0, smallest, -smallest]),
    )

    @st.composite
    def drawn(draw: st.DrawFn) -> torch.Tensor:
        size = draw(shapes() if shape is None else shape)
        count = math.prod(size)
        equal = draw(st.booleans())
        values = (
            [draw(element)] * count
            if equal
            else draw(st.lists(element, min_size=count, max_size=count))
        )
        w = torch.tensor(values, dtype=dtype).reshape(size)
        if len(size) >= 2 and draw(st.booleans()):
            w = w.mT.contiguous().mT
        return w

    return drawn()


def steps(most: int = 100_000) -> st.SearchStrategy[int]:
    """Draw numbers of completed steps, as schedules are given them: small ones, and large ones.

    Args:
        most: the largest.

    Returns:
        A strategy for integers from 0 on.
    """
    return st.one_of(st.integers(0, min(20, most)), st.integers(0, most))
