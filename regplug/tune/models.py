"""Many models as one: their parameters with two leading dimensions, (folds, strengths)."""

from typing import Any, TypeAlias

import torch
from torch import nn
from torch.func import functional_call, vmap

from regplug.tune.recipe import Recipe

__all__ = ["Tensors", "losses", "outputs"]

Tensors: TypeAlias = dict[str, torch.Tensor]


def losses(
    recipe: Recipe, model: nn.Module, stack: Tensors, inputs: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Return the loss of every model, shape ``(folds, strengths)``.

    Args:
        recipe: has the loss.
        model: the module that all models are like.
        stack: parameters of shape ``(folds, strengths, …)``.
        inputs: shape ``(folds, rows, …)``.
        targets: shape ``(folds, rows, …)``, in the form that the loss takes.
    """
    strengths = next(iter(stack.values())).shape[1]
    # Some batching rules want targets batched alike (mse_loss among them); a view costs nothing.
    spread = targets[:, None].expand(-1, strengths, *targets.shape[1:])
    found: torch.Tensor = vmap(vmap(recipe.loss))(outputs(model, stack, inputs), spread)
    return found


def outputs(model: nn.Module, stack: Tensors, inputs: torch.Tensor) -> torch.Tensor:
    """Return the outputs of all models, shape ``(folds, strengths, rows, …)``."""

    def forward(parameters: Tensors, batch: torch.Tensor) -> Any:
        return functional_call(model, parameters, (batch,))

    found: torch.Tensor = vmap(vmap(forward, in_dims=(0, None)))(stack, inputs)
    return found
