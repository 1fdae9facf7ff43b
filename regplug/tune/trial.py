"""Whether a recipe's fits can be trained as one: found out on one batch, before the first fit."""

import copy
from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import Optimizer

import regplug
from regplug import Plugin
from regplug.tune.models import losses
from regplug.tune.recipe import Recipe
from regplug.tune.stacked_penalty import why_not_stacked

__all__ = ["CantStack", "trial"]

# Each updates an element from that element's own gradient and state, and from nothing else.
ELEMENTWISE: frozenset[type[Optimizer]] = frozenset(
    {
        torch.optim.SGD,
        torch.optim.Adam,
        torch.optim.AdamW,
        torch.optim.Adamax,
        torch.optim.NAdam,
        torch.optim.RAdam,
        torch.optim.RMSprop,
        torch.optim.Rprop,
        torch.optim.Adagrad,
        torch.optim.Adadelta,
        torch.optim.ASGD,
    }
)


class CantStack(Exception):  # noqa: N818 - it is an answer, and never leaves the package
    """Why fits have to be trained one by one."""


def trial(
    recipe: Recipe, plugins: Sequence[Plugin], inputs: torch.Tensor, targets: torch.Tensor
) -> int:
    """Compare two stacked models with two single ones, on one batch.

    Args:
        recipe: whose fits they are.
        plugins: those of any fit.
        inputs: one batch, shape ``(rows, …)``.
        targets: shape ``(rows, …)``, in the form that the loss takes.

    Returns:
        How many bytes one model takes: weights, gradients, optimizer state, activations.

    Raises:
        CantStack: the models, the optimizer or the plugins can't be stacked.
        RegplugError: the plugins can't be attached at all.
    """
    model, optimizer = recipe.start()
    if type(optimizer) not in ELEMENTWISE:
        raise CantStack(f"{type(optimizer).__name__} does not act element by element")
    if _has_step_hooks(optimizer):
        raise CantStack("the optimizer has step hooks")
    for plugin in plugins:
        if why := why_not_stacked(plugin):
            raise CantStack(why)
    with regplug.attach(model, optimizer, plugins):
        pass  # which refuses selections and optimizers that the plugins can't work with

    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            if p.requires_grad:
                p.mul_(0.9)
    saved = _run_singles(recipe, [model, other], inputs, targets)
    _compare(recipe, [model, other], inputs, targets)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return 4 * weights + saved


def _has_step_hooks(optimizer: Optimizer) -> bool:
    """Whether there are any: asked of the tables into which one more is put for a moment."""
    handles = [
        optimizer.register_step_pre_hook(lambda *arguments: None),
        optimizer.register_step_post_hook(lambda *arguments: None),
    ]
    others = any(len(handle.hooks_dict_ref() or ()) > 1 for handle in handles)
    for handle in handles:
        handle.remove()
    return others


def _run_singles(
    recipe: Recipe, models: Sequence[nn.Module], inputs: torch.Tensor, targets: torch.Tensor
) -> int:
    """Leave each model's own gradient in ``.grad``; return the bytes that a backward pass keeps."""
    saved = 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal saved
        saved += tensor.numel() * tensor.element_size()
        return tensor

    buffers = [(b, b.clone()) for model in models for b in model.buffers()]
    state = _random_state(inputs.device)
    for model in models:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = model(inputs)
            loss = recipe.loss(output, targets)
        loss.backward()
    if not torch.equal(state, _random_state(inputs.device)):
        raise CantStack("the model's forward draws random numbers, as layers that drop do")
    if any(not torch.equal(now, before) for now, before in buffers):
        raise CantStack("the model's forward changes its buffers, as batch norm does")
    return saved // len(models)


def _compare(
    recipe: Recipe, models: Sequence[nn.Module], inputs: torch.Tensor, targets: torch.Tensor
) -> None:
    parameters = [dict(model.named_parameters()) for model in models]
    stack = {
        name: torch.stack([p[name].detach() for p in parameters])[None].requires_grad_()
        for name, parameter in parameters[0].items()
        if parameter.requires_grad
    }
    if not stack:
        raise CantStack("the model has nothing to train")
    try:
        found = losses(recipe, models[0], stack, inputs[None], targets[None])
        found.sum().backward()
    except Exception as error:  # torch has no batching rule for something in there
        raise CantStack(
            f"torch.func.vmap can't run the model or the loss: {type(error).__name__}: {error}"
        ) from error
    for name, stacked in stack.items():
        for k, each in enumerate(parameters):
            wanted, grad = each[name].grad, stacked.grad
            if wanted is None and grad is None:
                continue
            if wanted is None or grad is None or not torch.allclose(grad[0, k], wanted, 1e-3, 1e-6):
                raise CantStack(f"the gradient of {name} is another when models are stacked")


def _random_state(device: torch.device) -> torch.Tensor:
    if device.type == "cuda":
        return torch.cuda.get_rng_state(device)
    return torch.get_rng_state()
