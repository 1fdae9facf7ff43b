"""The non-negativity constraint: no weight is below 0."""

import torch

from regplug_builtins._constraint import Constraint

__all__ = ["NonNegative"]


class NonNegative(Constraint):
    r"""The non-negativity constraint: after each step, w ← max(w, 0).

    This is Keras' ``NonNeg``. It acts element by element, so on shards with no communication.

    Args:
        where: the parameters, by default ``"weights"``.
        name: the key of its metrics.

    Raises:
        SelectionError: ``where`` is no selection, or covers nothing.
        UnsupportedError: the optimizer is LBFGS, whose line search a constraint breaks.

    References:
        Daniel D. Lee, H. Sebastian Seung, "Learning the parts of objects by non-negative matrix
        factorization", 1999, https://doi.org/10.1038/44565.
        Jan Chorowski, Jacek M. Zurada, "Learning Understandable Neural Networks With Nonnegative
        Weight Constraints", 2015, https://doi.org/10.1109/TNNLS.2014.2310059.

    >>> NonNegative().constrained(torch.tensor([-1.0, 0.5]))
    tensor([0.0000, 0.5000])
    """

    projects = True
    separable = True

    def constrained(self, w: torch.Tensor) -> torch.Tensor:
        """Return max(w, 0)."""
        return w.clamp(min=0)
