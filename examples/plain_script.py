"""A training script that knows nothing of regplug: handwritten digits, a small network, Adam.

    python examples/plain_script.py
    regplug run -p 'l1(1e-3, delivery="proximal")' --report out examples/plain_script.py

The second line trains the same script, unedited, with an L1 penalty: 96 instead of 97 of a hundred
digits are read right, by a network more than half of whose weights are exactly zero. `out/` then
holds tables and a picture.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    """One hidden layer."""

    def __init__(self, hidden):
        super().__init__()
        self.hidden = nn.Linear(64, hidden)
        self.dropout = nn.Dropout(0.1)
        self.output = nn.Linear(hidden, 10)

    def forward(self, x):
        return self.output(self.dropout(F.relu(self.hidden(x))))


def train(model, loader, optimizer):
    model.train()
    total = 0.0
    for x, y in loader:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        total += loss.item() * len(x)
    return total / len(loader.dataset)


@torch.no_grad()
def accuracy(model, x, y):
    model.eval()
    return (model(x).argmax(1) == y).float().mean().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    digits = load_digits()
    x = torch.tensor(digits.data / 16, dtype=torch.float32)
    y = torch.tensor(digits.target)
    x, x_test, y, y_test = train_test_split(x, y, test_size=0.3, random_state=args.seed)
    loader = DataLoader(TensorDataset(x, y), batch_size=args.batch_size, shuffle=True)

    model = Net(args.hidden)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    for epoch in range(args.epochs):
        loss = train(model, loader, optimizer)
        if epoch % 5 == 4 or epoch + 1 == args.epochs:
            print(f"epoch {epoch + 1:3d}  loss {loss:.4f}", end="  ")
            print(f"train {accuracy(model, x, y):.3f}  test {accuracy(model, x_test, y_test):.3f}")


if __name__ == "__main__":
    main()
