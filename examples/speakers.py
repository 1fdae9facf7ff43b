"""Speaker recognition on real speech: which of nine men said /ae/?

    python examples/speakers.py

The Japanese vowels data that aeon brings along: 270 utterances to train on, 370 to test, each a
sequence of 7 to 29 frames of 12 cepstrum coefficients. A two-layer GRU under Adam. Proximal L1,
with a strength of its own for the weights of the inputs and for those of the recurrence, sets nine
of ten weights of the GRU to exactly 0, and it recognizes the speakers as well as before.

References:
    Mineichi Kudo, Jun Toyama, Masaru Shimbo, "Multidimensional curve classification using
    passing-through regions", 1999, https://doi.org/10.1016/S0167-8655(99)00077-X.
"""

import argparse
from collections.abc import Sequence
from statistics import mean, stdev

import numpy as np
import torch
from aeon.datasets import load_japanese_vowels
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_sequence

import regplug

SPARSE = [
    "l1(5e-4, where='gru.weight_ih*', delivery='proximal', name='l1_input')",
    "l1(1e-3, where='gru.weight_hh*', delivery='proximal', name='l1_recurrent')",
]


class Recognizer(nn.Module):
    """Reads an utterance in both directions and names the speaker."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(12, 64, num_layers=2, bidirectional=True)
        self.output = nn.Linear(128, 9)

    def forward(self, utterances: Sequence[torch.Tensor]) -> torch.Tensor:
        """Map N utterances, ``(frames, 12)`` each, to ``(N, 9)`` scores."""
        _, states = self.gru(pack_sequence(utterances, enforce_sorted=False))
        return self.output(torch.cat([states[-2], states[-1]], dim=1))


def train(
    utterances: Sequence[torch.Tensor], speakers: torch.Tensor, plugins: list[str], epochs: int
) -> tuple[Recognizer, dict[str, float]]:
    model = Recognizer()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=epochs)
    with regplug.attach(model, optimizer, plugins) as session:
        for _ in range(epochs):
            for batch in torch.randperm(len(speakers)).split(32):
                optimizer.zero_grad()
                loss = F.cross_entropy(model([utterances[i] for i in batch]), speakers[batch])
                loss.backward()
                optimizer.step()
            scheduler.step()
        return model.eval(), session.metrics()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="2 epochs and one seed")
    quick = parser.parse_args().quick
    epochs, seeds = (2, 1) if quick else (20, 4)

    data = []
    for split in ("train", "test"):
        series, speakers = load_japanese_vowels(split=split)
        utterances = [torch.tensor(frames.T, dtype=torch.float32) for frames in series]
        data.append((utterances, torch.tensor(speakers.astype(np.int64)) - 1))
    (known, known_speakers), (new, new_speakers) = data
    frames = torch.cat(known)
    known, new = ([(u - frames.mean(0)) / frames.std(0) for u in us] for us in (known, new))

    for name, plugins in (("plain", []), ("sparse", SPARSE)):
        right = []
        for seed in range(seeds):
            torch.manual_seed(seed)
            model, metrics = train(known, known_speakers, plugins, epochs)
            with torch.no_grad():
                right.append(100 * float((model(new).argmax(1) == new_speakers).float().mean()))
        spread = f" ± {stdev(right):.1f}" if seeds > 1 else ""
        print(f"{name:6} test accuracy {mean(right):.1f}{spread} %")
    for key, value in metrics.items():
        if key.endswith("/zeros"):
            print(f"{key}: {100 * value:.0f} %")


if __name__ == "__main__":
    main()
