"""What an examination tells of the weights: groups of those that are treated alike."""

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Decay", "Group", "Penalty"]


@dataclass(frozen=True)
class Penalty:
    """What penalizes weights in the loss.

    Attributes:
        kind: ``l1`` (λ·Σ|w|), ``l2`` (λ·Σw², no ½), ``norm`` (λ·‖w‖), ``l1_to_anchor``,
            ``l2_to_anchor`` or ``other``.
        strength: λ as it acts in a step, after accumulation, scaling and clipping; None where one
            number does not say it.
    """

    kind: str
    strength: float | None

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"kind": self.kind, "strength": self.strength}


@dataclass(frozen=True)
class Decay:
    """What decays weights beside the loss.

    Attributes:
        rate: by what share a weight shrinks in a step; lr·λ where it is coupled.
        lr: the learning rate that it was measured at.
        convention: which meaning of ``weight_decay`` it is.
        strength: λ in this convention.
        in_each: λ in each convention in which one would have this rate.
        by: ``optimizer``, or ``loop`` where the loop does it by hand.
    """

    rate: float
    lr: float
    convention: str
    strength: float
    in_each: dict[str, float] = field(default_factory=dict, compare=False)
    by: str = "optimizer"

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "rate": self.rate,
            "lr": self.lr,
            "convention": self.convention,
            "strength": self.strength,
            "strengths": self.in_each,
            "by": self.by,
        }


@dataclass(frozen=True)
class Group:
    """Parameters that are treated alike.

    Attributes:
        parameters: their names.
        weights: how many weights they are.
        penalties: what penalizes them in the loss.
        decay: the decay that acts most, None where there is none.
        decays: all decays: the optimizer's own, and the loop's by hand.
        plugins: regplug's own plugins that act on them.
        dropout: rates of dropout in the modules around them, in training and in evaluation.
        share: ‖Δw_reg‖/‖Δw‖, of an update the part that regularization makes.
        time: 1/(lr·λ), the steps in which a decay or an L2 penalty alone shrinks to 1/e.
        zeros: the share of the weights that are exactly 0.
        norm: their Euclidean norm.
        lr: their learning rate in the last step that was looked at.
    """

    parameters: tuple[str, ...]
    weights: int
    penalties: tuple[Penalty, ...]
    decays: tuple[Decay, ...]
    plugins: tuple[str, ...]
    dropout: dict[str, Any]
    share: float | None
    time: float | None
    zeros: float
    norm: float
    lr: float | None = None

    @property
    def decay(self) -> Decay | None:
        """The decay that acts most, None where there is none."""
        return max(self.decays, key=lambda decay: abs(decay.rate), default=None)

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        decay = self.decay
        return {
            "parameters": list(self.parameters),
            "weights": self.weights,
            "penalties": [penalty.as_json() for penalty in self.penalties],
            "decay": None if decay is None else decay.as_json(),
            "decays": [each.as_json() for each in self.decays],
            "plugins": list(self.plugins),
            "dropout": self.dropout,
            "share": self.share,
            "time": self.time,
            "zeros": self.zeros,
            "norm": self.norm,
            "lr": self.lr,
        }
