"""A model of GPT-2's size and build, of torch's plain modules, and whole steps of its training."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from passes import LAMBDA
from torch import nn
from torch.nn import functional as F

import regplug


@dataclass(frozen=True)
class Size:
    """How large the model is, and its batches."""

    layers: int = 12
    width: int = 768
    heads: int = 12
    words: int = 50257
    context: int = 1024
    batch: int = 8
    length: int = 512


TINY = Size(layers=2, width=32, heads=2, words=97, context=16, batch=2, length=8)


class Block(nn.Module):
    """Attention and a network of two layers, each added to what comes in."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads = size.heads
        self.before_attention = nn.LayerNorm(size.width)
        self.attention = nn.Linear(size.width, 3 * size.width)
        self.attended = nn.Linear(size.width, size.width)
        self.before_network = nn.LayerNorm(size.width)
        self.up = nn.Linear(size.width, 4 * size.width)
        self.down = nn.Linear(4 * size.width, size.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x`` with what this block adds."""
        batch, length, width = x.shape
        parts = self.attention(self.before_attention(x)).split(width, dim=-1)
        q, k, v = (p.view(batch, length, self.heads, -1).transpose(1, 2) for p in parts)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attended(seen.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.before_network(x)), approximate="tanh"))


class Gpt2(nn.Module):
    """124M weights in 148 tensors, in the size that is the default."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.words = nn.Embedding(size.words, size.width)
        self.places = nn.Embedding(size.context, size.width)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.last = nn.LayerNorm(size.width)
        for embedding in (self.words, self.places):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        """Return the logits of the next words."""
        places = torch.arange(words.shape[1], device=words.device)
        x = self.words(words) + self.places(places)
        for block in self.blocks:
            x = block(x)
        return F.linear(self.last(x), self.words.weight)


def _textbook(model: nn.Module) -> torch.Tensor:
    return LAMBDA * sum(w.abs().sum() for w in model.parameters())


def step(
    size: Size,
    device: str,
    plugins: Sequence[str] | None = None,
    *,
    kind: type[torch.optim.Optimizer] = torch.optim.AdamW,
    in_loss: bool = False,
    textbook: bool = False,
) -> Callable[[], None]:
    """Return one training step, with ``plugins`` attached unless they are None."""
    torch.manual_seed(0)
    model = Gpt2(size).to(device)
    optimizer = kind(model.parameters(), lr=1e-5, fused=True)
    drawn = torch.randint(size.words, (size.batch, size.length + 1), device=device)
    given, wanted = drawn[:, :-1], drawn[:, 1:]
    session = None if plugins is None else regplug.attach(model, optimizer, plugins)

    def run() -> None:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16):
            logits = model(given)
            loss = F.cross_entropy(logits.flatten(0, 1), wanted.flatten())
            if textbook:
                loss = loss + _textbook(model)
        if in_loss and session is not None:
            loss = session.loss(loss)
        loss.backward()
        optimizer.step()

    return run


def candidates(size: Size, device: str) -> dict[str, Callable[[], object]]:
    """Return the loops that are compared; the base, with nothing attached, comes first."""
    l1, everywhere = f"l1({LAMBDA}", ", where='all')"
    return {
        "bare": step(size, device),
        "attached, no plugin": step(size, device, []),
        "l1 at the step": step(size, device, [l1 + everywhere]),
        "l2 handed over, Adam": step(
            size, device, [f"l2({LAMBDA}{everywhere}"], kind=torch.optim.Adam
        ),
        "weight_decay handed over": step(
            size, device, [f"weight_decay(0.1, existing='replace'{everywhere}"]
        ),
        "l1 proximal": step(size, device, [f"{l1}, delivery='proximal'{everywhere}"]),
        "l1 in the loss": step(size, device, [f"{l1}, delivery='loss'{everywhere}"], in_loss=True),
        "textbook l1 in the loss": step(size, device, textbook=True),
    }
