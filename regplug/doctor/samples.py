"""A few thousand elements of a tensor, always the same ones: enough to compare by."""

import torch

from regplug.backend.shards import local

__all__ = ["Sampler", "fit"]

_MOST = 4096


class Sampler:
    """Takes the same elements of every tensor of one shape, spread over all of it."""

    def __init__(self, like: torch.Tensor) -> None:
        part = local(like.detach())
        self._shape, self._places = part.shape, None
        if part.numel() > _MOST:
            flat = torch.linspace(0, part.numel() - 1, _MOST, dtype=torch.float64).long()
            self._places = tuple(
                index.to(part.device) for index in torch.unravel_index(flat, part.shape)
            )

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the elements, as a new tensor."""
        part = local(tensor.detach())
        if part.is_sparse:
            part = part.to_dense()
        if part.shape != self._shape:
            return part.new_zeros(0)
        return part.reshape(-1).clone() if self._places is None else part[self._places]


def fit(target: torch.Tensor, *sources: torch.Tensor) -> tuple[list[float], float]:
    """Return the factors by which ``sources`` add up to ``target``, and what is left, as a share.

    What is left is measured by the largest element.
    """
    y = target.double().cpu()
    columns = [source.double().cpu() for source in sources]
    sizes = [max(float(column.norm()), 1e-300) for column in columns]
    x = torch.stack([column / size for column, size in zip(columns, sizes, strict=True)], dim=1)
    found = torch.linalg.lstsq(x, y[:, None], driver="gelsd").solution[:, 0]
    left = y - x @ found
    largest = float(y.abs().max())
    factors = [float(f) / size for f, size in zip(found, sizes, strict=True)]
    return factors, float(left.abs().max()) / largest if largest else 0.0
