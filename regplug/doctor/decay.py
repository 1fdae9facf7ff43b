"""What an optimizer's own decay does to a weight, measured on copies with zero gradients.

With a state of before the first step and no gradient, all that moves a weight is decay. Whether it
is decoupled (the weight shrinks by a rate) or coupled (λ·w is added to the gradient) shows by
whether a gradient of λ·w at a weight of zero moves it alike.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.optim import Optimizer

from regplug.backend.groups import Group, number, sign
from regplug.backend.trial import trial_steps, untouched_randomness
from regplug.errors import UnsupportedError

__all__ = ["CONVENTIONS", "Measured", "measure"]

CONVENTIONS = {
    "coupled": "λ·w is added to the gradient: (λ/2)·Σw² in the loss, as SGD and Adam have it",
    "lr·wd": "w ← (1 − lr·wd)·w, as AdamW has it",
    "lr/lr₀·wd": "w ← (1 − (lr/lr₀)·wd)·w, which is independent of the first learning rate",
    "plain wd": "w ← (1 − wd)·w, whatever the learning rate",
    "lr²/max_lr·wd": "w ← (1 − (lr²/max_lr)·wd)·w",
}

_LARGEST = 1 << 22
_WARM = 8


@dataclass(frozen=True)
class Measured:
    """The decay of one weight.

    Attributes:
        rate: by what share each weight shrinks in a step with a zero gradient; for coupled decay
            lr·λ, which a plain gradient step would make of it.
        lr: the group's learning rate.
        convention: one of :data:`CONVENTIONS`.
        strength: λ in this convention.
        in_each: λ in every convention in which one would have this rate.
    """

    rate: float
    lr: float
    convention: str
    strength: float
    in_each: Mapping[str, float]


def measure(
    optimizer: Optimizer, group: Group, weight: torch.Tensor, lr0: float, max_lr: float
) -> Measured | None:
    """Return how ``optimizer`` decays a weight like this one in ``group``, None if it does not.

    Args:
        optimizer: any torch optimizer, which is left as it is.
        group: the group that the weight is in.
        weight: a plain tensor whose shape and device count.
        lr0: the group's first learning rate.
        max_lr: its largest one yet.

    Raises:
        UnsupportedError: it moves weights without a gradient, and not as decay does.
        Exception: whatever the optimizer's own step raises on a copy.
    """
    with torch.no_grad(), untouched_randomness(weight.device):
        try:
            trial = _Trial(optimizer, group, _stand_in(weight, torch.float64))
            zero = trial.move(trial.w, torch.zeros_like(trial.w))
        except Exception:
            trial = _Trial(optimizer, group, _stand_in(weight, torch.float32))
            zero = trial.move(trial.w, torch.zeros_like(trial.w))
        if not bool(zero.any()) and number(group, "weight_decay"):
            # Some do nothing in their first steps, until their state is one to go by.
            trial.warm = [(torch.zeros_like(trial.w), torch.zeros_like(trial.w))] * _WARM
            zero = trial.move(trial.w, torch.zeros_like(trial.w))
        if not bool(zero.any()):
            return None
        lr = number(group, "lr", 1.0)
        strength = trial.coupled(zero)
        if strength is not None:
            return Measured(lr * strength, lr, "coupled", strength, {})
        if not _close(trial.after_another(), zero):
            raise UnsupportedError("it computes steps from weights that it keeps itself")
        return _decoupled(trial, zero, lr, lr0, max_lr)


def _stand_in(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a weight of that shape without zeros, whose elements all differ in size and sign."""
    device = torch.device("cpu") if weight.device.type == "mps" else weight.device
    if weight.numel() > _LARGEST:
        shape = torch.Size([min(n, 64) for n in weight.shape])
    else:
        shape = weight.shape
    places = torch.arange(shape.numel(), dtype=dtype, device=device)
    spread = 0.5 + (places * 0.6180339887498949).frac()
    return torch.where(places % 3 == 1, -spread, spread).reshape(shape)


class _Trial:
    """Steps of one optimizer on one weight."""

    def __init__(self, optimizer: Optimizer, group: Group, w: torch.Tensor) -> None:
        self.optimizer, self.group, self.w = optimizer, group, w
        self.warm: list[tuple[torch.Tensor, torch.Tensor]] = []

    def move(self, w: torch.Tensor, g: torch.Tensor, lr_times: float = 1.0) -> torch.Tensor:
        steps = [*self.warm, (w, g)]
        return trial_steps(self.optimizer, self.group, steps, lr_times=lr_times) - w

    def coupled(self, zero: torch.Tensor) -> float | None:
        """Return λ of coupled decay, None if the decay is another one."""
        said = number(self.group, "weight_decay")
        if said and self._adds(said, zero):
            return said if self._is_remembered(said) else None
        found = self._by_proportion(zero) if _alike(zero / self.w) else self._by_bisection()
        return found if found is not None and self._adds(found, zero) else None

    def _adds(self, strength: float, zero: torch.Tensor) -> bool:
        """Whether a gradient of λ·w moves a weight of zero as the decay of λ moves w."""
        return _close(self.move(torch.zeros_like(self.w), self._gradient(strength)), zero)

    def _gradient(self, strength: float) -> torch.Tensor:
        return self.w * (strength * sign(self.group))

    def after_another(self) -> torch.Tensor:
        """Return the move without a gradient, after a step in which the weight was another."""
        zeros = torch.zeros_like(self.w)
        steps = [*self.warm, (2 * self.w, zeros), (self.w, zeros)]
        return trial_steps(self.optimizer, self.group, steps) - self.w

    def _is_remembered(self, strength: float) -> bool:
        """Whether momentum knows of the decay as it would of the gradient λ·w.

        Without momentum the two are one, and the decay is taken for a coupled one.
        """
        zeros = torch.zeros_like(self.w)
        of_gradient, of_decay = (
            trial_steps(self.optimizer, self.group, [first, (zeros, zeros)])
            for first in ((zeros, self._gradient(strength)), (self.w, zeros))
        )
        return not bool(of_gradient.any()) or _close(of_gradient, of_decay)

    def _by_proportion(self, zero: torch.Tensor) -> float | None:
        """Return λ where a gradient moves weights in proportion to itself, as descent does."""
        by_gradient = self.move(torch.zeros_like(self.w), self._gradient(1.0)) / self.w
        if not _alike(by_gradient) or not bool(by_gradient.all()):
            return None
        found = float((zero / self.w).mean() / by_gradient.mean())
        return found if self._is_remembered(found) else None

    def _by_bisection(self) -> float | None:
        """Return the λ at which a gradient of −λ·w stands the weight still, if there is one."""

        def drift(strength: float) -> float:
            g = self.w * (-strength * sign(self.group))
            return float((self.move(self.w, g) * self.w).sum())

        low, high = 1e-12, 1e3
        if not drift(low) < 0 < drift(high):
            return None
        for _ in range(100):
            middle = math.sqrt(low * high)
            at = drift(middle)
            if at == 0:
                return middle
            low, high = (middle, high) if at < 0 else (low, middle)
        return math.sqrt(low * high)


def _alike(ratios: torch.Tensor) -> bool:
    """Whether all of these are one number."""
    return _close(ratios, torch.full_like(ratios, float(ratios.mean())))


def _decoupled(
    trial: _Trial, zero: torch.Tensor, lr: float, lr0: float, max_lr: float
) -> Measured | None:
    said = number(trial.group, "weight_decay")
    rate = float(-(zero * trial.w).sum() / (trial.w * trial.w).sum())
    apart = float((zero + rate * trial.w).abs().max())
    if rate <= 0 or apart > 0.05 * float(zero.abs().max()):
        raise UnsupportedError("without a gradient it moves weights in another way than decay does")
    in_each = _in_each(rate, lr, lr0, max_lr)
    if rate > 0.25 and not any(_near(value, said) for value in in_each.values()):
        raise UnsupportedError(f"without a gradient it takes {100 * rate:.3g} % off the weights")
    halved = trial.move(trial.w, torch.zeros_like(trial.w), lr_times=0.5)
    half = float(-(halved * trial.w).sum() / (trial.w * trial.w).sum())
    power = round(math.log2(rate / half), 2) if half / rate > 0 else 1.0
    if power == 0 or lr == 0:
        convention = "plain wd"
    elif power == 2:
        convention = "lr²/max_lr·wd"
    elif said and not _near(in_each["lr·wd"], said) and _near(in_each["lr/lr₀·wd"], said):
        convention = "lr/lr₀·wd"
    else:
        convention = "lr·wd"
    return Measured(rate, lr, convention, in_each[convention], in_each)


def _in_each(rate: float, lr: float, lr0: float, max_lr: float) -> dict[str, float]:
    if lr == 0:
        return {"plain wd": rate}
    return {
        "lr·wd": rate / lr,
        "lr/lr₀·wd": rate * lr0 / lr,
        "plain wd": rate,
        "lr²/max_lr·wd": rate * max_lr / lr**2,
    }


def _near(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-4)


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    size = max(float(a.abs().max()), float(b.abs().max()))
    tolerance = 1e-7 if a.dtype == torch.float64 else 1e-4
    return float((a - b).abs().max()) <= tolerance * size
