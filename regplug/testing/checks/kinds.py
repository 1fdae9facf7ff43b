"""Models for plugins that ask for a kind of layer that the exam's small model has not."""

from collections.abc import Callable

import torch
from torch import nn

from regplug.testing.bench import Sample

__all__ = ["GROWN"]

WIDTH = 7


class _Grown(Sample):
    """The exam's small model, to whose head further layers bring something too."""

    def __init__(self) -> None:
        super().__init__()
        known = {id(parameter) for parameter in self.parameters()}
        self.grow()
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for parameter in self.parameters():
                if id(parameter) not in known:
                    parameter.normal_(0, 0.3, generator=generator)

    def grow(self) -> None:
        """Add the layers."""
        raise NotImplementedError

    def more(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the layers make of ``x``, both of shape ``(N, 7)``."""
        raise NotImplementedError

    def features(self, x: torch.Tensor) -> torch.Tensor:
        x = super().features(x)
        out: torch.Tensor = x + self.squash(self.more(x))
        return out


class Convolutional(_Grown):
    """Has a convolution of one dimension and one of two."""

    def grow(self) -> None:
        self.conv = nn.Conv2d(1, 2, 3, padding=1)
        self.conv1d = nn.Conv1d(2, 1, 3, padding=1)

    def more(self, x: torch.Tensor) -> torch.Tensor:
        images = self.conv(x.view(-1, 1, 1, WIDTH))
        out: torch.Tensor = self.conv1d(images.squeeze(2))
        return out.squeeze(1)


class Embedded(_Grown):
    """Looks up an embedding."""

    def grow(self) -> None:
        self.embedding = nn.Embedding(5, WIDTH)

    def more(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.embedding((x[:, 0] > 0).long())
        return out


class _Still(nn.BatchNorm1d):
    """Normalizes by its running statistics, so that half a batch gives what the whole one does."""

    def train(self, mode: bool = True) -> "_Still":
        """Stay as in evaluation."""
        super().train(False)
        return self


class Normalized(_Grown):
    """Has batch, group and root-mean-square normalization."""

    def grow(self) -> None:
        self.bn = _Still(WIDTH).eval()
        self.group_norm = nn.GroupNorm(1, WIDTH)
        self.rms_norm = nn.RMSNorm(WIDTH)

    def more(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.rms_norm(self.group_norm(self.bn(x)))
        return out


class _Recurrent(_Grown):
    name: str
    kind: Callable[..., nn.Module]

    def grow(self) -> None:
        self.add_module(self.name, self.kind(1, 3, num_layers=2, dropout=0.1, batch_first=True))
        self.out = nn.Linear(3, 1)

    def more(self, x: torch.Tensor) -> torch.Tensor:
        recurrent = self.get_submodule(self.name)
        out: torch.Tensor = self.out(recurrent(x.unsqueeze(2))[0])
        return out.squeeze(2)


class LongMemory(_Recurrent):
    """Has an LSTM."""

    name, kind = "lstm", nn.LSTM


class GatedMemory(_Recurrent):
    """Has a GRU."""

    name, kind = "gru", nn.GRU


class PlainMemory(_Recurrent):
    """Has a plain recurrent layer."""

    name, kind = "rnn", nn.RNN


class Attentive(_Grown):
    """Has attention, and projections by the usual names."""

    def grow(self) -> None:
        self.attn = nn.MultiheadAttention(4, 2, batch_first=True)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(4, 4) for _ in range(4))

    def more(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.pad(x, (0, 1)).view(-1, 2, 4)
        out = self.attn(self.q_proj(x), self.k_proj(x), self.v_proj(x), need_weights=False)[0]
        projected: torch.Tensor = self.o_proj(out)
        return projected.flatten(1)[:, :WIDTH]


class Named(_Grown):
    """Has linear layers by the names that models of language and vision give to theirs."""

    def grow(self) -> None:
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 3), nn.ReLU(), nn.Linear(3, WIDTH))
        self.fc = nn.Linear(WIDTH, WIDTH)
        self.classifier = nn.Linear(WIDTH, WIDTH)
        self.lm_head = nn.Linear(WIDTH, WIDTH, bias=False)

    def more(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.mlp(x) + self.fc(x) + self.classifier(x) + self.lm_head(x)
        return out


GROWN: tuple[type[Sample], ...] = (
    Convolutional,
    Embedded,
    Normalized,
    Attentive,
    LongMemory,
    GatedMemory,
    PlainMemory,
    Named,
)
"""The models, in the order in which they are tried."""
