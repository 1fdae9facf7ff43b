"""What whole training loops cost with plugins, relative to the same loop without."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

import regplug

LAMBDA = 1e-4


def textbook_network() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Return the 10→50→10 network of the textbooks and its 100 samples, trained full-batch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 50), nn.ReLU(), nn.Linear(50, 10))
    return model, torch.randn(100, 10), torch.randn(100, 10)


def transformer() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Return a Transformer encoder of about a million weights and a small batch for it."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(128, 4, 768, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
    return model, torch.randn(8, 32, 128), torch.randn(8, 32, 128)


def _penalty(model: nn.Module) -> torch.Tensor:
    weights = [p for p in model.parameters() if p.ndim > 1]
    l1 = sum((w.abs().sum() for w in weights), start=torch.zeros(()))
    l2 = sum((w.square().sum() for w in weights), start=torch.zeros(()))
    return LAMBDA * l1 + LAMBDA * l2


def loop(
    make: Callable[[], tuple[nn.Module, torch.Tensor, torch.Tensor]],
    optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    plugins: Sequence[str] | None = None,
    *,
    textbook: bool = False,
    in_loss: bool = False,
    accelerate: bool = False,
) -> Callable[[], None]:
    """Return one training step of a loop, with ``plugins`` attached unless they are None."""
    model, x, y = make()
    updates = optimizer(model)
    criterion = nn.MSELoss()
    backward = torch.Tensor.backward
    if accelerate:
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=True)
        model, updates = accelerator.prepare(model, updates)
        backward = accelerator.backward
    session = None if plugins is None else regplug.attach(model, updates, plugins)

    def step() -> None:
        updates.zero_grad()
        loss = criterion(model(x), y)
        if textbook:
            loss = loss + _penalty(model)
        if in_loss and session is not None:
            loss = session.loss(loss)
        backward(loss)
        updates.step()

    return step


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1e-3)


def _adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-3)


def _adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)


def candidates(
    make: Callable[[], tuple[nn.Module, torch.Tensor, torch.Tensor]],
) -> dict[str, Callable[[], object]]:
    """Return the loops that are compared; the base, with nothing attached, comes first."""
    l1, l2 = f"l1({LAMBDA})", f"l2({LAMBDA})"
    return {
        "bare loop, SGD": loop(make, _sgd),
        "attached, no plugin": loop(make, _sgd, []),
        "l1 at the step": loop(make, _sgd, [l1]),
        "l2 at the step": loop(make, _sgd, [l2]),
        "l1 and l2 at the step": loop(make, _sgd, [l1, l2]),
        "l1 proximal": loop(make, _sgd, [f"l1({LAMBDA}, delivery='proximal')"]),
        "weight_decay": loop(make, _sgd, ["weight_decay(0.1)"]),
        "l1 and l2 in the loss": loop(make, _sgd, [l1, l2], in_loss=True),
        "textbook l1 and l2 in the loss": loop(make, _sgd, textbook=True),
    }


def adam_candidates(
    make: Callable[[], tuple[nn.Module, torch.Tensor, torch.Tensor]],
) -> dict[str, Callable[[], object]]:
    """Return loops under Adam, where torch has a weight decay of its own to compare with."""
    everything = "weight_decay(0.1, where='all')"
    return {
        "bare loop, Adam": loop(make, _adam),
        "torch's own AdamW": loop(make, _adamw),
        "weight_decay on Adam": loop(make, _adam, [everything]),
        "weight_decay on AdamW": loop(
            make, _adamw, ["weight_decay(0.1, where='all', existing='replace')"]
        ),
        "l1 proximal on Adam": loop(make, _adam, [f"l1({LAMBDA}, delivery='proximal')"]),
    }


def accelerate_candidates(
    make: Callable[[], tuple[nn.Module, torch.Tensor, torch.Tensor]],
) -> dict[str, Callable[[], object]]:
    """Return an Accelerate loop without and with plugins."""
    plugins = [f"l1({LAMBDA})", f"l2({LAMBDA})"]
    return {
        "bare loop, Accelerate": loop(make, _sgd, accelerate=True),
        "l1 and l2 at the step": loop(make, _sgd, plugins, accelerate=True),
        "textbook l1 and l2 in the loss": loop(make, _sgd, textbook=True, accelerate=True),
    }
