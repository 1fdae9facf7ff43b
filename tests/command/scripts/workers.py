"""Worker processes, started afresh, that import this file again."""

import argparse
import multiprocessing as mp

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

if __name__ != "__main__":
    # What a worker sees of this file.
    assert __name__ == "__mp_main__", __name__


class Squares(Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, index):
        x = torch.tensor([index / 24.0])
        return x, x**2


def collate(samples):
    return tuple(torch.stack(column) for column in zip(*samples, strict=True))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("output")
    args = parser.parse_args()
    torch.manual_seed(0)
    loader = DataLoader(
        Squares(),
        batch_size=8,
        num_workers=1,
        collate_fn=collate,
        multiprocessing_context=mp.get_context("spawn"),
        persistent_workers=True,
    )
    model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.NAdam(model.parameters(), lr=1e-2)
    for _ in range(2):
        for x, y in loader:
            loss = nn.functional.mse_loss(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch.save(model.state_dict(), args.output)


if __name__ == "__main__":
    main()
