"""A small loop that sessions are attached to, and what is compared after it."""

import torch
from torch import nn

EVERYTHING = (
    "l1(linear(0.1, 0.2, steps=4))",
    "l2(0.1, delivery='loss')",
    "elastic_net(0.1, 0.1, delivery='proximal')",
    "weight_decay(0.1, existing='replace')",
    "dropout(linear(0.9, 0.1, steps=4))",
)


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Dropout(0.3), nn.Linear(8, 2))


def batches(count):
    generator = torch.Generator().manual_seed(2)
    for _ in range(count):
        yield torch.randn(5, 4, generator=generator), torch.randn(5, 2, generator=generator)


def train(model, optimizer, count, session=None):
    """Run a plain loop, through the loss event if there is a session."""
    torch.manual_seed(3)
    for x, y in batches(count):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        if session is not None:
            loss = session.loss(loss)
        loss.backward()
        optimizer.step()


def same(ours, theirs):
    """Tell whether two state dicts hold the same, to the bit."""
    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return ours == theirs


def hooks_of(optimizer, model):
    """Return every hook that is registered on either."""
    kept = [value for name, value in vars(optimizer).items() if name.endswith("_hooks")]
    for module in model.modules():
        kept += [value for name, value in vars(module).items() if name.endswith("_hooks")]
    for parameter in model.parameters():
        kept += [parameter._backward_hooks, parameter._post_accumulate_grad_hooks]
    return [hook for hooks in kept if hooks for hook in hooks]
