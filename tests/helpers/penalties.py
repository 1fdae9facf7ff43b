"""Penalties for these tests: what the built-ins do not cover, each a formula on a few lines."""

import torch

import regplug


class GroupNorm(regplug.Penalty):
    """λ·Σ ‖row‖: it couples the elements of a row, and its rows need not be on one rank."""

    def value(self, w: torch.Tensor) -> torch.Tensor:
        return w.norm(dim=0).sum() + w.norm(dim=-1).sum()


class ColumnNorm(regplug.Penalty):
    """λ·Σ ‖column‖, the group lasso; a column is spread over all ranks."""

    def value(self, w: torch.Tensor) -> torch.Tensor:
        return w.norm(dim=0).sum()

    def proximal(self, w: torch.Tensor, step: float | torch.Tensor) -> torch.Tensor:
        return w * (1 - step * self.strength / w.norm(dim=0, keepdim=True)).clamp(min=0)


class SpectralNorm(regplug.Penalty):
    """λ·σ₁(w), the largest singular value."""

    def value(self, w: torch.Tensor) -> torch.Tensor:
        return torch.linalg.matrix_norm(w, ord=2)


class FailsOnOne(regplug.Plugin):
    """Raises on rank 1 at its third step."""

    @regplug.hookimpl
    def on_gradients(self, session: regplug.Session) -> None:
        if torch.distributed.get_rank() == 1 and session.steps == 2:
            raise ValueError("a bad day")


class Remembers(regplug.Plugin):
    """Keeps the sum of each weight's gradients, of the part that this rank holds."""

    scaled_gradients = False

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}

    @regplug.hookimpl
    def on_gradients(self, session: regplug.Session) -> None:
        for entry in session.coverage(regplug.Selection("weights")):
            gradient = entry.parameter.grad
            assert gradient is not None
            part = regplug.local(gradient)
            self._sums[entry.name] = self._sums.get(entry.name, torch.zeros_like(part)) + part

    @regplug.hookimpl
    def on_state(self) -> dict[str, torch.Tensor]:
        return self._sums

    @regplug.hookimpl
    def on_load_state(self, state: dict[str, torch.Tensor]) -> None:
        self._sums = dict(state)
