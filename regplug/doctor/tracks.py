"""What is seen of one parameter from step to step."""

import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from regplug.backend.names import Named, is_normalization
from regplug.doctor.decay import Measured
from regplug.doctor.readings import Reading
from regplug.doctor.samples import Sampler

__all__ = ["Look", "Seen", "Track"]

_ADAPTER = re.compile(r"(^|[._])(lora|loha|lokr|hada|dora|adapters?)([._\d]|$)", re.IGNORECASE)


@dataclass
class Seen:
    """One kind of penalty on one parameter, from one step to the next.

    Attributes:
        strength: the sum of λ over the passes, None where it can't be said.
        passes: in how many backward passes it was.
        scale: the sum of what the loss was multiplied by, after a loss scale is taken out.
        spots: at how many places of one pass, at most.
    """

    strength: float | None = 0.0
    passes: int = 0
    scale: float = 0.0
    spots: int = 0


@dataclass
class Look:
    """What one step showed of one parameter.

    Attributes:
        penalties: what was in the loss; their strengths as they act.
        ratio: what became of the gradient between the last backward pass and the step, None if it
            was more than a factor.
        clip: the same without the loss scale, which is a clipping if it is below 1.
        decay: what the optimizer's own decay is.
        by_hand: what the loop itself shrank the weights by since the step before.
        norm: the weight's norm after that.
        added: λ of λ·w that the loop itself added to the gradient.
        trains: whether the parameter was one that asks for a gradient.
        gradient: ``none``, ``zero``, ``some`` or ``not finite``.
        lr: the learning rate.
        share: of the update the part that regularization makes, squared, and the update squared.
        pull: squared norms of penalties' gradients and of the rest.
    """

    penalties: dict[str, Seen] = field(default_factory=dict)
    ratio: float | None = None
    clip: float | None = None
    decay: Measured | None = None
    by_hand: float = 0.0
    norm: float = 0.0
    added: float = 0.0
    trains: bool = True
    gradient: str = "none"
    lr: float = 0.0
    share: tuple[float, float] = (0.0, 0.0)
    pull: tuple[float, float] = (0.0, 0.0)


class Track:
    """One parameter, with what is known of it and what was seen.

    Args:
        named: the parameter and its names.
        group: the index of its group in the optimizer.
    """

    def __init__(self, named: Named, group: int) -> None:
        self.names, self.parameter, self.group = named.names, named.parameter, group
        self.modules = named.modules
        self.sampler = Sampler(named.parameter)
        self.pending: dict[str, Seen] = {}
        self.accumulated: torch.Tensor | None = None  # the gradient as backward left it
        self.at_update: torch.Tensor | None = None  # the gradient as the optimizer gets it
        self.before: torch.Tensor | None = None
        self.after: torch.Tensor | None = None
        self.looks: list[Look] = []

    @property
    def name(self) -> str:
        """Its first name."""
        return self.names[0]

    @property
    def role(self) -> str:
        """``bias``, ``norm``, ``embedding``, ``adapter`` or ``weight``."""
        last = self.name.rpartition(".")[2]
        if any(is_normalization(module) for module in self.modules):
            return "norm"
        if _ADAPTER.search(self.name) or (last not in ("weight", "bias") and self._in_lora):
            return "adapter"
        if any(isinstance(module, nn.Embedding | nn.EmbeddingBag) for module in self.modules):
            return "embedding"
        if self.parameter.ndim < 2 and ("bias" in last or self.parameter.ndim == 1):
            return "bias" if "bias" in last or not _is_alone(self) else "weight"
        return "weight"

    @property
    def _in_lora(self) -> bool:
        return any("lora" in type(module).__name__.lower() for module in self.modules)

    def reset(self) -> None:
        """Forget what was accumulated: the gradient was zeroed."""
        self.pending, self.accumulated = {}, None

    def add(self, readings: list[Reading], loss_scale: float) -> None:
        """Add what one backward pass showed of this parameter."""
        kinds: dict[str, list[Reading]] = {}
        for reading in readings:
            kinds.setdefault(reading.kind, []).append(reading)
        for kind, found in kinds.items():
            seen = self.pending.setdefault(kind, Seen())
            seen.passes += 1
            seen.spots = max(seen.spots, len(found))
            scales = [r.scale for r in found if r.scale is not None]
            seen.scale += (scales[0] if scales else loss_scale) / loss_scale
            if any(r.strength is None for r in found) or seen.strength is None:
                seen.strength = None
            else:
                seen.strength += sum(r.strength for r in found if r.strength is not None)


def _is_alone(track: Track) -> bool:
    """Whether a one-dimensional parameter is all that its module computes with."""
    owner: Any = track.modules[0]
    own = list(nn.Module.named_parameters(owner, recurse=False))
    return not any(p.ndim >= 2 for _, p in own)
