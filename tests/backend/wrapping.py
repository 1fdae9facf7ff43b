"""Optimizers that pass their step on to others, as they are widely written."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from typing import Any

import torch
from torch import nn

from tests.helpers.compare import close
from tests.helpers.nets import one_layer

LR = 0.1


class SAM(torch.optim.Optimizer):
    """As davda54/sam: an outer optimizer with an inner one that shares its groups."""

    def __init__(self, params: Any, base_optimizer: Any, rho: float = 0.05, **kwargs: Any) -> None:
        super().__init__(params, {"rho": rho, **kwargs})
        self.base_optimizer = base_optimizer(self.param_groups, **kwargs)
        self.param_groups = self.base_optimizer.param_groups
        self.defaults.update(self.base_optimizer.defaults)

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        norms = [p.grad.norm() for g in self.param_groups for p in g["params"]]
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["old_p"] = p.data.clone()
                p.add_(p.grad * group["rho"] / torch.stack(norms).norm())
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad: bool = False) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.data = self.state[p]["old_p"]
        self.base_optimizer.step()
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is not None
        closure = torch.enable_grad()(closure)
        self.first_step(zero_grad=True)
        closure()
        self.second_step()

    def load_state_dict(self, state_dict: Any) -> None:
        super().load_state_dict(state_dict)
        self.base_optimizer.param_groups = self.param_groups


class AGC(torch.optim.Optimizer):
    """As of nfnets: clips, then lets the optimizer that it is given step. Its groups are copies."""

    def __init__(self, params: Any, optim: torch.optim.Optimizer, most: float) -> None:
        super().__init__(params, {})
        self.optim, self.most = optim, most

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            nn.utils.clip_grad_norm_(group["params"], self.most)
        return self.optim.step(closure)


class Container(torch.optim.Optimizer):
    """As torchtitan's: initialised as an optimizer for its hooks alone, in one group."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self.optimizers = parts
        everything = [p for part in parts for g in part.param_groups for p in g["params"]]
        super().__init__(everything, dict(parts[0].defaults))

    def step(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        for part in self.optimizers:
            part.step(*args, **kwargs)

    def zero_grad(self, *args: Any, **kwargs: Any) -> None:
        for part in self.optimizers:
            part.zero_grad(*args, **kwargs)


class PCGrad:
    """As WeiChengTseng/Pytorch-PCGrad: no optimizer itself."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optim = optimizer

    def zero_grad(self) -> None:
        return self._optim.zero_grad()

    def step(self) -> Any:
        return self._optim.step()


class ASAM:
    """As SamsungLabs/ASAM: no optimizer itself, given one and the model."""

    def __init__(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
        self.optimizer, self.model = optimizer, model

    def descent_step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()


class Lookahead(torch.optim.Optimizer):
    """As lonePatient's and pytorch_optimizer's: with or without hooks of its own that fire."""

    def __init__(self, optimizer: torch.optim.Optimizer, hooks: bool) -> None:
        self.optimizer = optimizer
        self.param_groups = optimizer.param_groups
        self.state = defaultdict(dict)
        if hooks:
            self._optimizer_step_pre_hooks = OrderedDict()
            self._optimizer_step_post_hooks = OrderedDict()
            self._patch_step_function()

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)


def net() -> nn.Linear:
    return one_layer(1.0, 0.5, -2.0)


def loss(model: nn.Module) -> torch.Tensor:
    """½‖w + 1‖², whose gradient w + 1 SAM asks for at w + ρ·(w + 1)/‖w + 1‖."""
    w: torch.Tensor = next(model.parameters())
    return 0.5 * (w + 1).square().sum()


def agrees(found: torch.Tensor, expected: torch.Tensor) -> None:
    close(found, expected, atol=1e-9)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = net(), net()


def container(model: Two, **settings: Any) -> Container:
    return Container(
        [torch.optim.SGD(m.parameters(), lr=LR, **settings) for m in (model.a, model.b)]
    )
