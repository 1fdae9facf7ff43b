"""Scripts that a test writes, and what is told of them."""

from pathlib import Path

TRAIN = """
import sys, torch
model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
optimizer = torch.optim.{optimizer}
for _ in range(3):
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
"""
SGD = TRAIN.format(optimizer="SGD(model.parameters(), lr=0.1)")


def write(folder: Path, text: str, name: str = "script.py") -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def one_line(ended) -> str:
    """Return the only line on standard error."""
    (line,) = ended.err.splitlines()
    return line
