"""A small loop that sessions are attached to, and what is compared after it."""

import torch
from torch import nn

from tests.helpers.loops import batches
from tests.helpers.nets import norm_net

EVERYTHING = (
    "l1(linear(0.1, 0.2, steps=4))",
    "l2(0.1, delivery='loss')",
    "elastic_net(0.1, 0.1, delivery='proximal')",
    "weight_decay(0.1, existing='replace')",
    "dropout(linear(0.9, 0.1, steps=4))",
)


def network():
    return norm_net(nn.Dropout(0.3))


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


def hooks_of(optimizer, model):
    """Return every hook that is registered on either."""
    kept = [value for name, value in vars(optimizer).items() if name.endswith("_hooks")]
    for module in model.modules():
        kept += [value for name, value in vars(module).items() if name.endswith("_hooks")]
    for parameter in model.parameters():
        kept += [parameter._backward_hooks, parameter._post_accumulate_grad_hooks]
    return [hook for hooks in kept if hooks for hook in hooks]
