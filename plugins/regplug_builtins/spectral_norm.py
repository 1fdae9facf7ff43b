"""Spectral norm regularization, λ·Σ σ(W)²."""

import torch

from regplug import Penalty, SessionView, hookimpl
from regplug_builtins._groups import as_matrix, check_dimensions

__all__ = ["SpectralNorm"]


class SpectralNorm(Penalty):
    r"""The spectral norm penalty: λ·Σ σ(W)², σ the largest singular value of each weight.

    σ is the most by which the layer stretches a vector. A convolution's weight counts as the matrix
    ``(out, in·height·width)``, as usual. With the authors' ½, λ is half of theirs. The gradient
    is 2σ·u·vᵀ, of the singular vectors to σ.

    σ is exact, from the eigenvalues of the smaller of WWᵀ and WᵀW: the cost is that of a matrix
    product and of min(m, n)³, so for wide layers choose ``where`` with care.

    Args:
        strength: λ, a finite number ≥ 0 or a schedule of the step count.
        where: the parameters, by default ``"weights"``; each of two or more dimensions.
        delivery: ``"auto"``, ``"loss"`` or ``"step"``, see :class:`regplug.Penalty`.
        name: the key of its state and metrics.

    Raises:
        SpecError: ``strength`` is negative or not finite, or ``delivery`` is none of these.
        SelectionError: ``where`` is no selection, or selects a vector.

    References:
        Yuichi Yoshida, Takeru Miyato, "Spectral Norm Regularization for Improving the
        Generalizability of Deep Learning", 2017, https://arxiv.org/abs/1705.10941.

    >>> SpectralNorm(1.0).value(torch.tensor([[3.0, 0.0], [0.0, 2.0]]))
    tensor(9.)
    """

    orientation = "rows"

    @hookimpl
    def on_attach(self, session: SessionView) -> None:
        """Check the shapes, and what every penalty checks."""
        check_dimensions(self.name, session, self._selection)
        super().on_attach(session)

    def value(self, w: torch.Tensor) -> torch.Tensor:
        """Return σ²."""
        largest: torch.Tensor = torch.linalg.eigvalsh(_gram(w))[-1]
        return largest

    def gradient(self, w: torch.Tensor) -> torch.Tensor:
        """Return 2σ·u·vᵀ: σ·vᵀ is uᵀW, and σ·u is Wv."""
        matrix = as_matrix(w, "rows")
        vector: torch.Tensor = torch.linalg.eigh(_gram(w)).eigenvectors[:, -1:]
        if matrix.shape[0] <= matrix.shape[1]:
            return (2 * vector @ (vector.T @ matrix)).view_as(w)
        return (2 * (matrix @ vector) @ vector.T).view_as(w)


def _gram(w: torch.Tensor) -> torch.Tensor:
    matrix = as_matrix(w, "rows")
    return matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
