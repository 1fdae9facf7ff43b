"""A character language model: a small Transformer on the help texts that come with Python.

Dropout falls over time, and weight decay takes the matrices alone: ``where="weights"``, the
default, spares biases and norms, and the pattern spares the embeddings too::

    python examples/language_model.py [--quick]
"""

import argparse
from pydoc_data.topics import topics

import torch
from torch import nn
from torch.nn import functional as F

import regplug

CONTEXT = 64


class LanguageModel(nn.Module):
    """Characters to scores for the next one, shapes (N, T) to (N, T, symbols)."""

    def __init__(self, symbols: int, width: int = 64) -> None:
        super().__init__()
        self.token = nn.Embedding(symbols, width)
        self.position = nn.Embedding(CONTEXT, width)
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.1, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, symbols)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        hidden = self.token(x) + self.position.weight[: x.shape[1]]
        return self.head(self.encoder(hidden, mask=mask, is_causal=True))


def batch(text: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    starts = torch.randint(len(text) - CONTEXT - 1, (size,))
    pieces = torch.stack([text[start : start + CONTEXT + 1] for start in starts.tolist()])
    return pieces[:, :-1], pieces[:, 1:]


def loss_of(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="20 steps")
    steps = 20 if parser.parse_args().quick else 600

    torch.manual_seed(0)
    raw = "\n".join(topics[name] for name in sorted(topics))
    alphabet = sorted(set(raw))
    text = torch.tensor([alphabet.index(character) for character in raw])
    train, test = text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]

    model = LanguageModel(len(alphabet))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    session = regplug.attach(
        model,
        optimizer,
        [
            f"dropout(linear(0.2, 0, steps={steps}))",
            "weight_decay(0.1, where=['weights', '!token.*', '!position.*'])",
        ],
    )
    print(session.describe())
    for step in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model, *batch(train, 16))
        loss.backward()
        optimizer.step()
        if step % (steps // 4) == 0:
            rate = session.metrics()["dropout/rate"]
            print(f"step {step:4}  loss {loss.item():.3f}  dropout {rate:.3f}")

    model.eval()
    with torch.no_grad():
        found = torch.stack([loss_of(model, *batch(test, 16)) for _ in range(10)]).mean()
    print(f"test loss {found.item():.3f} nats a character; {len(alphabet)} symbols, so chance is")
    print(f"          {torch.tensor(float(len(alphabet))).log().item():.3f}")


if __name__ == "__main__":
    main()
