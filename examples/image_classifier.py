"""An image classifier: a small CNN on scikit-learn's digits, with and without regularizers.

The loop is the same for both; what differs is the list of plugins::

    python examples/image_classifier.py [--quick]
"""

import argparse

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional as F

import regplug

PLUGINS = ["weight_decay(0.05)", "dropout(linear(0.4, 0.1, steps=400))"]


def network() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten()),
        *(nn.Dropout(0.0), nn.Linear(32 * 4 * 4, 10)),
    )


def train(plugins: list[str], data: list[torch.Tensor], epochs: int) -> float:
    """Train from the same start, and return the accuracy on the test images."""
    train_x, test_x, train_y, test_y = data
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with regplug.attach(model, optimizer, plugins) as session:
        for _ in range(epochs):
            for batch in torch.randperm(len(train_x)).split(32):
                optimizer.zero_grad()
                F.cross_entropy(model(train_x[batch]), train_y[batch]).backward()
                optimizer.step()
        print(session.describe())
    model.eval()
    with torch.no_grad():
        return (model(test_x).argmax(1) == test_y).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2 epochs")
    epochs = 2 if parser.parse_args().quick else 40
    digits = load_digits()
    split = train_test_split(
        digits.images[:, None] / 16, digits.target, train_size=300, random_state=0
    )
    data = [torch.tensor(a, dtype=torch.float32 if a.ndim > 1 else torch.long) for a in split]
    plain = train([], data, epochs)
    regularized = train(PLUGINS, data, epochs)
    print(f"test accuracy: plain {plain:.1%}, regularized {regularized:.1%}")


if __name__ == "__main__":
    main()
