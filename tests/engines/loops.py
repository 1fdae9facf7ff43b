"""One loop, under DeepSpeed's engine and by torch alone: what each of them comes to."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import regplug

os.environ.setdefault("DS_ACCELERATOR", "cpu")

ROWS, MICRO = 8, 2
"""Rows of a micro-batch of all ranks, and micro-batches of a step where steps accumulate."""

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.5),
    "adam": lambda groups: torch.optim.Adam(groups, lr=0.01),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1),
}


def make() -> nn.Module:
    """Of odd sizes, so that slices begin and end within parameters and ranks have none of some."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 5), nn.Tanh(), nn.Dropout(0.0), nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1)
    )


def groups_of(model: nn.Module) -> list[dict[str, Any]]:
    """Two groups, which ZeRO steps one after another."""
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    return [{"params": others, "lr": 0.02}, {"params": weights}]


def config(stage: int, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": ROWS // 2,
        "gradient_accumulation_steps": 1,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": stage, "sub_group_size": 30},
        "steps_per_print": 10**9,
        "gradient_clipping": 0.0,  # 1.0 by default
    }
    return {**found, **more}


def started(**more: Any) -> Any:
    """Return an engine; ``more`` is what ``deepspeed.initialize`` takes."""
    without_operators()
    import deepspeed

    engine, *_ = deepspeed.initialize(**more)
    return engine


def without_operators() -> None:
    """Have DeepSpeed compile none of its own: it does, where it finds a compiler, for minutes."""
    import deepspeed

    compatible = deepspeed.ops.__compatible_ops__
    compatible.update(dict.fromkeys(compatible, False))


def batches(steps: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(ROWS, 6, generator=generator) for _ in range(steps)]


def by_engine(
    rank: int,
    stage: int,
    specs: list[str],
    optimizer: str = "sgd",
    more: dict[str, Any] | None = None,
    steps: int = 4,
    scale: float = 1.0,
) -> dict[str, Any]:
    """Train under an engine on two ranks: the master weights, and all that is shown."""
    model = make()
    settings = config(stage, **(more or {}))
    engine = started(
        model=model, optimizer=OPTIMIZERS[optimizer](groups_of(model)), config=settings
    )
    metrics = []
    micro = settings["gradient_accumulation_steps"]
    dtype = next(engine.module.parameters()).dtype
    with regplug.attach(engine, engine.optimizer, specs) as session:
        acts = session.describe()
        for x in batches(steps * micro):
            loss = engine(x[rank::2].to(dtype)).float().square().mean() * scale
            engine.backward(loss)
            engine.step()
            metrics.append(session.metrics())
        counted = session.steps
        weights = master(engine.module)
    shown = {"weights": weights, "metrics": metrics[micro - 1 :: micro], "steps": counted}
    computes = computing(engine.module)
    engine.destroy()
    return {**shown, "computes": computes, "acts": acts}


def master(model: nn.Module) -> dict[str, list[Any]]:
    from deepspeed.utils import safe_get_full_fp32_param

    found = {name: safe_get_full_fp32_param(p) for name, p in model.named_parameters()}
    if any(w is None for w in found.values()):  # stage 0
        found = {name: p.detach() for name, p in model.named_parameters()}
    return {name: w.tolist() for name, w in found.items()}


def computing(model: nn.Module) -> dict[str, list[Any]]:
    """What the model computes with, gathered where it is partitioned."""
    import deepspeed

    parameters = list(model.parameters())
    with deepspeed.zero.GatheredParameters(parameters, enabled=hasattr(parameters[0], "ds_id")):
        return {name: p.detach().float().tolist() for name, p in model.named_parameters()}


def by_torch(
    specs: list[str],
    optimizer: str = "sgd",
    micro: int = 1,
    clip: float = 0.0,
    steps: int = 4,
    scale: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Any]:
    """The same by torch alone, in one process."""
    model = make().to(dtype)
    own = OPTIMIZERS[optimizer](groups_of(model))
    metrics = []
    with regplug.attach(model, own, specs) as session:
        for index, x in enumerate(batches(steps * micro)):
            (model(x.to(dtype)).square().mean() * scale / micro).backward()
            if index % micro == micro - 1:
                if clip:
                    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
                own.step()
                own.zero_grad()
                metrics.append(session.metrics())
        return {
            "weights": {name: p.tolist() for name, p in model.named_parameters()},
            "metrics": metrics,
            "steps": session.steps,
        }


def assert_same(found: list[dict[str, Any]], wanted: dict[str, Any], atol: float = 1e-6) -> None:
    """Weights and every shown value as by torch alone, and to the bit alike on all ranks."""
    for ours in found:
        assert ours["steps"] == wanted["steps"]
        assert ours["metrics"] == found[0]["metrics"]
        assert ours["weights"] == found[0]["weights"]
        for name, value in wanted["weights"].items():
            pair = (torch.tensor(w, dtype=torch.float64) for w in (ours["weights"][name], value))
            torch.testing.assert_close(*pair, rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")
        for mine, theirs in zip(ours["metrics"], wanted["metrics"], strict=True):
            assert mine.keys() == theirs.keys()
            for key, value in theirs.items():
                assert abs(mine[key] - value) <= 20 * atol * max(1, abs(value)), key
