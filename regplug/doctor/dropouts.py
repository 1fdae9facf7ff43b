"""Dropout and stochastic depth: their rates, and whether they were on when they should be."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from regplug.backend import stack

__all__ = ["Dropout", "Dropouts"]

_DROPOUTS = (
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.AlphaDropout, nn.FeatureAlphaDropout),
)
_RATES = (
    *("dropout", "drop_prob", "drop_rate", "dropout_p", "dropout_rate", "attn_dropout"),
    *("attention_dropout", "activation_dropout", "hidden_dropout", "hidden_dropout_prob"),
    *("resid_dropout", "dropout_prob", "proj_drop", "attn_drop", "drop_path", "drop_path_rate"),
)


@dataclass
class Dropout:
    """One module that drops, and what was seen of it.

    Attributes:
        name: its name in the model.
        module: the module.
        attribute: where its rate is.
        training: the rates that acted in each step that was looked at; 0 where it was off.
        evaluation: the rates that acted in forwards without gradients.
        called: whether it was called where something is trained.
    """

    name: str
    module: nn.Module
    attribute: str
    training: list[float] = field(default_factory=list)
    evaluation: set[float] = field(default_factory=set)
    called: bool = False

    @property
    def rate(self) -> float:
        """The rate as it is now."""
        return float(getattr(self.module, self.attribute))

    @property
    def acting(self) -> float:
        """The rate that a forward would have now."""
        return self.rate if self.module.training else 0.0

    @property
    def without_effect(self) -> bool:
        """Whether it is the dropout between the layers of a recurrent network of one layer."""
        return isinstance(self.module, nn.RNNBase) and self.module.num_layers == 1


class Dropouts:
    """All of a model that drops: modules, and calls of functions.

    Attributes:
        all: the modules.
        modes: whether the model was in training mode, in each step that was looked at.
        evaluated: the modes in which it was called without gradients.
        evaluated_at: before which steps that was.
        by_function: the rates by which functions dropped, modules' own calls among them, where
            something is trained.
        by_function_off: the rates by which functions, told not to, did not drop there.
        by_function_in_eval: by which they dropped in the model's own forwards without gradients.
        followed: whether calls of functions were seen.
        evaluating: whether the model is called without gradients just now.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.all = [
            Dropout(name, module, attribute)
            for name, module in model.named_modules()
            if (attribute := _attribute(module)) is not None
        ]
        self._modules = {id(dropout.module): dropout for dropout in self.all}
        self.modes: list[bool] = []
        self._now: tuple[bool, list[float]] | None = None
        self.evaluated: set[bool] = set()
        self.evaluated_at: set[int] = set()
        self.by_function: set[float] = set()
        self.by_function_off: set[float] = set()
        self.by_function_in_eval: set[float] = set()
        self.followed = self.evaluating = False
        self._trained: set[int] = set()

    def passed(self) -> None:
        """A backward pass came from a forward of the model: see what is on."""
        self._now = self.model.training, [dropout.acting for dropout in self.all]

    def trained(self) -> None:
        """A step is made of what was passed back last: note what was on."""
        if self._now is not None:
            self.modes.append(self._now[0])
            for dropout, rate in zip(self.all, self._now[1], strict=True):
                dropout.training.append(rate)

    def dropped(self, rate: float, drops: bool) -> None:
        """A function was called that drops elements, or would if it was told that it trains."""
        if torch.is_grad_enabled():
            (self.by_function if drops else self.by_function_off).add(rate)
        elif drops and self.evaluating and not any(d.acting for d in self.all):
            self.by_function_in_eval.add(rate)

    def trains_with(self, module: nn.Module) -> None:
        """A module, perhaps a part of the model, is called where gradients are wanted."""
        self._trained.add(id(module))
        if id(module) in self._modules:
            self._modules[id(module)].called = True

    @property
    def unused(self) -> list[Dropout]:
        """Those that are not called though what they belong to is, nor does a function drop so."""
        return [
            d
            for d in self.all
            if isinstance(d.module, _DROPOUTS)
            and not d.called
            and self.followed
            and id(self.model.get_submodule(d.name.rpartition(".")[0])) in self._trained
            and d.rate not in self.by_function
        ]

    def part_called(self, module: nn.Module) -> None:
        """A part of the model is called without gradients, perhaps by a trainer of its own.

        A checkpointed part is, too, where it trains, and so is what the model learns from.
        """
        dropout = self._modules.get(id(module))
        if dropout is None or stack.is_within("torch.utils.checkpoint"):
            return
        if stack.is_at_work(self.model, "forward") or self._is_frozen(dropout):
            return
        self._evaluated()
        dropout.evaluation.add(dropout.acting)

    def _is_frozen(self, dropout: Dropout) -> bool:
        """Whether nothing is trained in the smallest module around it that has weights."""
        around = dropout.name
        while around:
            around = around.rpartition(".")[0]
            weights = list(self.model.get_submodule(around).parameters())
            if weights:
                return not any(p.requires_grad for p in weights)
        return False

    def called(self, *arguments: Any) -> None:
        """The model is called: note what is on, if it is for no gradient."""
        if torch.is_grad_enabled():
            return
        self._evaluated()
        for dropout in self.all:
            dropout.evaluation.add(dropout.acting)

    def _evaluated(self) -> None:
        self.evaluated.add(self.model.training)
        self.evaluated_at.add(len(self.modes))

    @property
    def evaluated_always(self) -> bool:
        """Whether it was called without gradients before each step, as for targets to learn."""
        return 3 <= len(self.modes) <= len(self.evaluated_at)


def _attribute(module: nn.Module) -> str | None:
    names = ("p",) if isinstance(module, _DROPOUTS) else _RATES
    for name in names:
        rate = vars(module).get(name)
        if isinstance(rate, float | int) and not isinstance(rate, bool) and 0 < rate <= 1:
            return name
        if isinstance(rate, torch.Tensor) and rate.numel() == 1 and 0 < float(rate) <= 1:
            return name
    return None
