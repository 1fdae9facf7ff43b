"""The textbook: a 10→50→10 network, mean squared error, L1 and L2 in the loss.

Full-batch SGD for 100 epochs on 100 samples. ``session.loss`` puts the penalties into the loss, as
in loss + λ₁·Σ|w| + λ₂·Σw² written out: the same gradients, scaled and clipped with the rest::

    python examples/textbook_regression.py [--quick]
"""

import argparse

import torch
from torch import nn

import regplug


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="10 epochs")
    epochs = 10 if parser.parse_args().quick else 100

    torch.manual_seed(0)
    truth = torch.randn(10, 10) * (torch.rand(10, 10) < 0.3)  # most inputs do not matter
    x, new_x = torch.randn(100, 10), torch.randn(1000, 10)
    y, new_y = (inputs @ truth + 0.5 * torch.randn(len(inputs), 10) for inputs in (x, new_x))

    model = nn.Sequential(nn.Linear(10, 50), nn.ReLU(), nn.Linear(50, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    criterion = nn.MSELoss()

    with regplug.attach(model, optimizer, ["l1(1e-4)", "l2(1e-4)"]) as session:
        for epoch in range(epochs):
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            objective = session.loss(loss)  # the one line more
            objective.backward()
            optimizer.step()
            if epoch % (epochs // 5) == 0 or epoch == epochs - 1:
                penalties = objective.item() - loss.item()
                print(f"epoch {epoch:3}  mse {loss.item():.4f}  penalties {penalties:.4f}")
        print(session.describe())

    with torch.no_grad():
        print(f"mse on new samples {criterion(model(new_x), new_y).item():.4f}")


if __name__ == "__main__":
    main()
