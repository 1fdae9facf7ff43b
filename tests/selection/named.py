"""Names of what is selected, and one step."""

import torch

from regplug import Selection


def names(where, model):
    return [named.name for named in Selection(where).of(model)]


def train_once(model, optimizer, session=None):
    optimizer.zero_grad()
    loss = model(torch.ones(1, 2)).sum() * 0
    if session is not None:
        loss = session.loss(loss)
    loss.backward()
    optimizer.step()
