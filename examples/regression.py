"""Textbook regression: a 10 → 50 → 10 network, mean squared error, L1 and L2 in the loss.

    python examples/regression.py

All ten targets depend on the first three inputs alone; the network is not told. Full-batch
gradient descent for 100 epochs on 60 noisy samples. With the two penalties it fits those less
closely and new samples better. (What no model can get below is the noise's variance, 0.25.)
"""

import argparse

import torch
from torch import nn

import regplug


def train(
    x: torch.Tensor, y: torch.Tensor, plugins: list[str], epochs: int
) -> tuple[nn.Sequential, regplug.Session]:
    """The textbook's loop, with one line more: ``loss = session.loss(loss)``."""
    model = nn.Sequential(nn.Linear(10, 50), nn.ReLU(), nn.Linear(50, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    criterion = nn.MSELoss()
    session = regplug.attach(model, optimizer, plugins)
    for _ in range(epochs):
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss = session.loss(loss)  # loss + λ₁·Σ|w| + λ₂·Σw²
        loss.backward()
        optimizer.step()
    return model, session


def samples(count: int, mapping: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(count, 10)
    return x, torch.sin(x[:, :3]) @ mapping + 0.5 * torch.randn(count, 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="10 epochs and one seed")
    quick = parser.parse_args().quick
    epochs, seeds = (10, 1) if quick else (100, 5)

    print(f"{'plugins':22} {'MSE train':>9} {'test':>6}   mean |w| of inputs 1-3, of 4-10")
    for plugins in ([], ["l1(0.003)"], ["l2(0.003)"], ["l1(0.003)", "l2(0.003)"]):
        rows = []
        for seed in range(seeds):
            torch.manual_seed(seed)
            mapping = torch.randn(3, 10)
            x, y = samples(60, mapping)
            new_x, new_y = samples(1000, mapping)
            model, session = train(x, y, plugins, epochs)
            weight = model[0].weight.detach().abs().mean(0)
            with torch.no_grad():
                errors = [nn.functional.mse_loss(model(a), b) for a, b in ((x, y), (new_x, new_y))]
            rows.append(torch.stack([*errors, weight[:3].mean(), weight[3:].mean()]))
        fit, new, used, unused = torch.stack(rows).mean(0).tolist()
        print(
            f"{' '.join(plugins) or 'none':24} {fit:10.3f} {new:6.3f} {used:28.3f} {unused:13.3f}"
        )

    print(f"\nthe last of these runs:\n{session.describe()}")
    for key, value in session.metrics().items():
        print(f"{key:12} {value:.4g}")


if __name__ == "__main__":
    main()
