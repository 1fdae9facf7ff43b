"""A character language model: a small Transformer on the Python reference's help topics.

    python examples/language_model.py

20,000 characters of CPython's own ``pydoc_data.topics``, few enough to learn by heart. AdamW decays
everything by 0.01, embeddings, biases and norms too; here a plugin takes over, spares those and
decays the matrices harder. The dropout schedule reaches every dropout of the model, also those of
attention, which are plain floats. With both, the model learns less by heart and reads new text
better.
"""

import argparse
import math
import random
from pydoc_data.topics import topics

import torch
from torch import nn
from torch.nn import functional as F

import regplug

CONTEXT, WIDTH = 64, 96


class Transformer(nn.Module):
    """Predicts each next character from those before it."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, WIDTH)
        self.position_embedding = nn.Embedding(CONTEXT, WIDTH)
        layer = nn.TransformerEncoderLayer(
            WIDTH,
            nhead=4,
            dim_feedforward=4 * WIDTH,
            dropout=0.0,
            batch_first=True,
            norm_first=True,
        )
        self.layers = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, vocabulary)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT))

    def forward(self, characters: torch.Tensor) -> torch.Tensor:
        """Map ``(N, CONTEXT)`` characters to ``(N, CONTEXT, vocabulary)`` scores."""
        x = self.embedding(characters) + self.position_embedding.weight
        return self.head(self.norm(self.layers(x, mask=self.mask, is_causal=True)))


def windows(text: torch.Tensor, starts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows = text[starts[:, None] + torch.arange(CONTEXT + 1)]
    return rows[:, :-1], rows[:, 1:]


def bits(model: nn.Module, text: torch.Tensor) -> float:
    """Return the model's loss over ``text`` in bits per character."""
    model.eval()
    x, y = windows(text, torch.arange(0, len(text) - CONTEXT - 1, CONTEXT))
    with torch.no_grad():
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
    model.train()
    return loss.item() / math.log(2)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few steps on little text")
    quick = parser.parse_args().quick
    steps, size = (20, 2_000) if quick else (800, 20_000)

    text = "\n".join(topics[name] for name in random.Random(0).sample(sorted(topics), len(topics)))
    characters = sorted(set(text))
    numbers = torch.tensor([characters.index(c) for c in text])
    train, validation = numbers[:size], numbers[-2 * size :]

    variants = {
        "plain AdamW": [],
        "regularized": [
            "weight_decay(0.1, where=['weights', '!*embedding*'], existing='replace')",
            f"dropout(linear(0.3, 0, steps={steps}))",
        ],
    }
    for name, plugins in variants.items():
        torch.manual_seed(0)
        model = Transformer(len(characters))
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        with regplug.attach(model, optimizer, plugins) as session:
            print(f"\n{name}\n{session.describe() if plugins else ''}")
            for step in range(1, steps + 1):
                x, y = windows(train, torch.randint(len(train) - CONTEXT, (16,)))
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
                loss.backward()
                optimizer.step()
                if step % (steps // 4) == 0:
                    known, new = bits(model, train), bits(model, validation)
                    print(f"step {step}: {known:.2f} bits per character, {new:.2f} on new text")


if __name__ == "__main__":
    main()
