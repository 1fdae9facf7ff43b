"""Spectral norm regularization, λ·Σ σ(W)²."""

import torch

from regplug import Penalty, SessionView, hookimpl
from regplug_builtins._groups import as_matrix, check_dimensions

__all__ = ["SpectralNorm", "leading_vector"]

_SQUARINGS = 14  # the 16,384th power: a second value of 0.999 times the largest counts 1e-7


def leading_vector(gram: torch.Tensor) -> torch.Tensor:
    """Return the eigenvector to the largest eigenvalue of a positive matrix, as a column.

    It is found by squaring the matrix again and again, which no device has to be waited for, as it
    has for ``eigh``. Where the two largest eigenvalues are as good as equal, it lies between the
    vectors to these. Of a matrix that is zero it is zero.

    >>> leading_vector(torch.tensor([[9.0, 0.0], [0.0, 4.0]]))
    tensor([[1.],
            [0.]])
    """
    tiny = torch.finfo(gram.dtype).tiny
    power = gram
    for _ in range(_SQUARINGS):
        power = power / power.diagonal().sum().clamp(min=tiny)
        power = power @ power
    vector: torch.Tensor = power.index_select(1, power.diagonal().argmax().view(1))
    for _ in range(2):  # which takes the rounding of so many products off
        vector = vector / torch.linalg.vector_norm(vector).clamp(min=tiny)
        vector = gram @ vector
    vector /= torch.linalg.vector_norm(vector).clamp(min=tiny)
    return vector


class SpectralNorm(Penalty):
    r"""The spectral norm penalty: λ·Σ σ(W)², σ the largest singular value of each weight.

    σ is the most by which the layer stretches a vector. A convolution's weight counts as the matrix
    ``(out, in·height·width)``, as usual. With the authors' ½, λ is half of theirs. The gradient
    is 2σ·u·vᵀ, of the singular vectors to σ.

    σ is exact on the CPU, from the eigenvalues of the smaller of WWᵀ and WᵀW; elsewhere, where
    these would have the host wait, it is found by products of that matrix with itself
    (``leading_vector``), unless the gradient itself is to be differentiated. The cost is that
    of a matrix product and of min(m, n)³, so for wide layers choose ``where`` with care.

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
        gram = _gram(w)
        if _is_exact(w):
            largest: torch.Tensor = torch.linalg.eigvalsh(gram)[-1]
            return largest
        vector = leading_vector(gram)
        return (vector * (gram @ vector)).sum()

    def gradient(self, w: torch.Tensor) -> torch.Tensor:
        """Return 2σ·u·vᵀ: σ·vᵀ is uᵀW, and σ·u is Wv."""
        matrix = as_matrix(w, "rows")
        gram = _gram(w)
        if _is_exact(w):
            vector: torch.Tensor = torch.linalg.eigh(gram).eigenvectors[:, -1:]
        else:
            vector = leading_vector(gram)
        if matrix.shape[0] <= matrix.shape[1]:
            return (2 * vector @ (vector.T @ matrix)).view_as(w)
        return (2 * (matrix @ vector) @ vector.T).view_as(w)


def _is_exact(w: torch.Tensor) -> bool:
    return w.is_cpu or (w.requires_grad and torch.is_grad_enabled())


def _gram(w: torch.Tensor) -> torch.Tensor:
    matrix = as_matrix(w, "rows")
    return matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
