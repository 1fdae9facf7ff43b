"""The model of factory.py."""

from torch import nn


def make_model(width):
    backbone = nn.Sequential(nn.Linear(7, width), nn.Tanh(), nn.Dropout(0.2))
    return nn.ModuleDict({"backbone": backbone, "head": nn.Linear(width, 2)})
