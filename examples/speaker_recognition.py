"""Speaker recognition on real speech: nine men say /ae/, and a GRU tells who it was.

The Japanese Vowels data (Kudo, Toyama, Shimbo 1999) come with the package aeon: 12 cepstral
coefficients over 29 moments or fewer. 270 utterances to learn from, 370 to be judged by. An L1
penalty delivered by its proximal operator leaves a sparse recurrent network::

    python examples/speaker_recognition.py [--quick]
"""

import argparse

import numpy as np
import torch
from aeon.datasets import load_japanese_vowels
from torch import nn
from torch.nn import functional as F

import regplug


class Recognizer(nn.Module):
    """Utterances (N, T, 12) to scores of the speakers (N, 9)."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(12, 64, batch_first=True)
        self.dropout = nn.Dropout(0.0)
        self.head = nn.Linear(64, 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states, _ = self.gru(x)
        return self.head(self.dropout(states.mean(1)))


def speech(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return utterances, padded with zeros to 29 moments, and their speakers from 0 on."""
    utterances, speakers = load_japanese_vowels(split=split)
    padded = np.zeros((len(utterances), 29, 12), dtype=np.float32)
    for row, utterance in zip(padded, utterances, strict=True):
        row[: utterance.shape[1]] = utterance.T
    return torch.from_numpy(padded), torch.tensor(speakers.astype(int) - 1)


def train(plugins: list[str], epochs: int) -> None:
    """Train from the same start with ``plugins``, and print what came of it."""
    torch.manual_seed(0)
    model = Recognizer()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    (x, y), (test_x, test_y) = speech("train"), speech("test")
    with regplug.attach(model, optimizer, plugins) as session:
        for _ in range(epochs):
            for batch in torch.randperm(len(x)).split(32):
                optimizer.zero_grad()
                F.cross_entropy(model(x[batch]), y[batch]).backward()
                optimizer.step()
        zeros = session.metrics().get("l1/zeros", 0.0)
    model.eval()
    with torch.no_grad():
        right = (model(test_x).argmax(1) == test_y).float().mean().item()
    print(f"{', '.join(plugins) or 'plain'}:\n  test accuracy {right:.1%}, {zeros:.0%} exact zeros")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2 epochs")
    epochs = 2 if parser.parse_args().quick else 40
    train([], epochs)
    train(["dropout(0.3)"], epochs)
    train(["l1(1e-3, delivery='proximal')", "dropout(0.3)"], epochs)


if __name__ == "__main__":
    main()
