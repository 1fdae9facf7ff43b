"""An image classifier: a small convolutional network on scikit-learn's handwritten digits.

    python examples/images.py

300 images to train on, 1497 to test. Dropout fades out while training goes on; the proximal L1
penalty sets weights to exactly 0. The result reads more digits right, with fewer weights.
"""

import argparse
from collections.abc import Sequence
from statistics import mean, stdev

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import regplug


def network() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Dropout(0.0), nn.Linear(128, 64), nn.ReLU()),
        *(nn.Dropout(0.0), nn.Linear(64, 10)),
    )


def train(data: TensorDataset, epochs: int, plugins: Sequence[str]) -> tuple[nn.Sequential, str]:
    loader = DataLoader(data, batch_size=32, shuffle=True)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    with regplug.attach(model, optimizer, plugins) as session:
        for _ in range(epochs):
            for x, y in loader:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
                scheduler.step()
        described = session.describe()
    return model.eval(), described


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="2 epochs and one seed")
    quick = parser.parse_args().quick
    epochs, seeds = (2, 1) if quick else (40, 5)

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(digits.target)
    variants = {
        "plain": [],
        "regularized": [
            "l1(1e-3, delivery='proximal')",
            f"dropout(linear(0.3, 0, steps={10 * epochs}))",
        ],
    }
    for name, plugins in variants.items():
        right, zeros = [], []
        for seed in range(seeds):
            torch.manual_seed(seed)
            train_x, test_x, train_y, test_y = train_test_split(
                images, labels, train_size=300, stratify=labels, random_state=seed
            )
            model, described = train(TensorDataset(train_x, train_y), epochs, plugins)
            with torch.no_grad():
                right.append(100 * float((model(test_x).argmax(1) == test_y).float().mean()))
            weights = torch.cat([p.detach().flatten() for p in model.parameters() if p.ndim > 1])
            zeros.append(100 * float((weights == 0).float().mean()))
        spread = f" ± {stdev(right):.1f}" if seeds > 1 else ""
        told = f"test accuracy {mean(right):.1f}{spread} %, exact zeros {mean(zeros):.0f} %"
        print(f"{name:12} {told}")
    print(f"\nthe last of these runs:\n{described}")


if __name__ == "__main__":
    main()
