"""What is seen of one model and the optimizer that trains it."""

from collections.abc import Sequence
from types import FrameType

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from regplug.backend import private, stack, step_events, wrapped
from regplug.backend.groups import number
from regplug.backend.names import Named, named_parameters
from regplug.doctor.attached import plugins_on
from regplug.doctor.changes import is_rescaled, look_at_gradient, look_at_weights
from regplug.doctor.decays import Decays
from regplug.doctor.dropouts import Dropouts
from regplug.doctor.readings import Reading
from regplug.doctor.shares import share_of
from regplug.doctor.tracks import Look, Track

__all__ = ["Run"]


class Run:
    """One model and one optimizer, and what was seen of them.

    Args:
        model: the user's own module, unwrapped.
        optimizer: a torch optimizer, unwrapped.
        steps: at so many first steps it is looked closely.
        names: what the program calls model and optimizer, for the report.

    Attributes:
        steps: real steps so far.
        looked: at which of them it was looked.
        with_data: whether anything but penalties was in a loss.
        lost: the identities of weights of which a penalty without a graph was in a loss.
        plugins: regplug's own by the names of parameters, and whether they decay them.
        alone: whether no other model is trained beside this one.
        hidden: whether penalties could have been in a loss without being seen.
        unfollowed: whether what is made of weights could not be followed.
        decays: what the optimizer's own decay is.
        world: how many ranks trained together.
        troubles: what could not be seen, and why.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        steps: int,
        names: tuple[str, str] | None = None,
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self.names = names or (type(model).__name__, type(optimizer).__name__)
        self.steps, self.first = 0, steps
        self.looked: list[int] = []
        self.troubles: dict[str, None] = {}
        self.dropouts = Dropouts(model)
        self.with_data = False
        self.lost: set[int] = set()
        self.world = 1
        self.hidden = self.unfollowed = False
        self.decays = Decays(optimizer, self.trouble)
        self.alone = True
        self.plugins: dict[str, list[tuple[str, bool]]] = {}
        self.tracks: list[Track] = []
        self._by_id: dict[int, Track] = {}
        self._looks: dict[Track, Look] = {}  # of the step that is under way
        self._depth, self._in_step, self._real = 0, False, False
        self._call: FrameType | None = None
        self._caller = stack.Caller().frame
        self._last: int | None = None
        self._within = 1.0
        self._find()

    def _find(self) -> None:
        """Find the parameters of the optimizer, by their names in the model."""
        named = {id(n.parameter): n for n in named_parameters(self.model)}
        known = {id(track.parameter): track for track in self.tracks}
        self.tracks = []
        for index, group in enumerate(self.optimizer.param_groups):
            for place, p in enumerate(group["params"]):
                if id(p) not in named:
                    named[id(p)] = Named(p, (f"param_{place}",), (self.model,))
                self.tracks.append(known.get(id(p)) or Track(named[id(p)], index))
        self._by_id = {id(track.parameter): track for track in self.tracks}

    @property
    def looking(self) -> bool:
        """Whether the step that comes next is looked at."""
        if self.steps < self.first:
            return True
        # Two steps in a row, ever more rarely: what a loop does in between shows in the second.
        times, left = divmod(self.steps, max(self.first, 1))
        return left < 2 and times & (times - 1) == 0

    # --- backward passes -------------------------------------------------------------------

    def leaf(self, tensor: torch.Tensor) -> Track | None:
        """Return the track of a leaf of a graph, None if it is another's."""
        return self._by_id.get(id(tensor))

    def begins(self) -> None:
        """A backward pass begins: what was zeroed since the last one is forgotten."""
        for gathered, own in private.gathered_weights(self.model):
            if id(own) in self._by_id:
                self._by_id[id(gathered)] = self._by_id[id(own)]
        for track in self.tracks:
            g = track.parameter.grad
            if g is None or (
                (track.pending or track.accumulated is not None) and _is_zero(track, g)
            ):
                track.reset()

    def ended(self, leaves: Sequence[int], readings: Sequence[Reading], loss_scale: float) -> None:
        """A backward pass is over."""
        reached = [self._by_id[leaf] for leaf in leaves if leaf in self._by_id]
        if not reached:
            return
        self._in_step = self._in_step or self._depth > 0
        mine: dict[int, list[Reading]] = {}
        for reading in readings:
            for leaf in reading.leaves:
                if (track := self._by_id.get(id(leaf))) is not None:
                    mine.setdefault(id(track), []).append(reading)
        for track in dict.fromkeys(reached):
            if found := mine.get(id(track)):
                track.add(found, loss_scale)
                if private.has_gradient_hooks(track.parameter):
                    self.trouble(
                        "parameters have hooks that may change gradients (register_hook): λ of "
                        "penalties in the loss is told as it was before them"
                    )
            if track.parameter.grad is not None:
                track.accumulated = track.sampler.of(track.parameter.grad)
        self.dropouts.passed()

    def summed(self, tensor: torch.Tensor, ranks: int) -> None:
        """The loop itself added up a gradient over ranks, of which each has the penalties in it."""
        for track in self.tracks:
            g = track.parameter.grad
            if g is not None and g.data_ptr() == tensor.data_ptr() and g.shape == tensor.shape:
                for seen in track.pending.values():
                    seen.scale *= ranks
                    if seen.strength is not None:
                        seen.strength *= ranks
                track.accumulated = track.sampler.of(g)

    # --- steps -----------------------------------------------------------------------------

    def step_begins(self) -> bool:
        """The optimizer's step begins; return whether it is to be looked at gradients now."""
        # A step that raised left its depth behind; whether its call goes on tells the two apart.
        if self._depth and stack.is_running(self._call):
            self._depth += 1
            return False
        self._depth, self._call = 1, self._caller()
        self._looks = {}
        if not self.looking:
            return False
        self._in_step = False
        self._real = step_events.is_real(self.optimizer)
        self.plugins = plugins_on(self.optimizer) or self.plugins
        if dist.is_available() and dist.is_initialized():
            self.world = dist.get_world_size()
        if self._changed():
            self._find()
        self.decays.note_rates()
        return True

    def looks(self, loss_scale: float) -> None:
        """The optimizer is about to update: look at what it updates by."""
        if self._depth != 1 or self._looks:
            return  # a step within a step calls the hooks once more
        fused = getattr(self.optimizer, "grad_scale", None)
        self._within = 1.0 if fused is None else float(fused)
        for track in self.tracks:
            look = Look(lr=self._lr(track), trains=track.parameter.requires_grad)
            track.before = track.sampler.of(track.parameter)
            if self._last == self.steps:
                look_at_weights(track, look)
            if not look_at_gradient(track, look, loss_scale, self._within):
                self.trouble(
                    "between backward and step gradients were changed by more than a factor: "
                    "λ of penalties in the loss is told as it was before"
                )
            look.decay = self.decays.of(track, self.tracks)
            self._looks[track] = look

    def _changed(self) -> bool:
        return [id(p) for p in wrapped.parameters(self.optimizer)] != [
            id(track.parameter) for track in self.tracks
        ]

    def _lr(self, track: Track) -> float:
        return number(self.optimizer.param_groups[track.group], "lr", 1.0)

    def step_ends(self) -> bool:
        """The optimizer's step is over; return whether it was not one within another."""
        self._depth -= 1
        if self._depth > 0:
            return False
        self._depth, self._call = 0, None
        self._real = self._real or self._in_step  # by the gradients of a closure
        if self.looking and self._real and self._is_finite():
            for track, look in self._looks.items():
                self._settle(track, look)
            self.dropouts.trained()
            self.looked.append(self.steps)
        if self._real or not self.looking:
            self.steps += 1
            self._last = self.steps
        if not self.looking:
            for track in self.tracks:
                track.before = track.after = track.accumulated = track.at_update = None
        return True

    def _is_finite(self) -> bool:
        if all(look.gradient != "not finite" for look in self._looks.values()):
            return True
        self.trouble("steps whose gradients are not finite (NaN or infinite) are left out")
        for track in self.tracks:
            track.reset()
        return False

    def _settle(self, track: Track, look: Look) -> None:
        track.looks.append(look)
        track.after = track.sampler.of(track.parameter)
        look.penalties = track.pending
        track.pending = {}
        if self._in_step:
            look.ratio = look.clip = 1.0
            look.gradient = "none" if track.parameter.grad is None else "some"
        for seen in look.penalties.values():
            if seen.strength is not None and look.ratio is not None:
                seen.strength *= look.ratio
        share_of(self.optimizer, track, look)
        at_update, track.accumulated = track.at_update, None
        if track.parameter.grad is not None:
            track.accumulated = track.sampler.of(track.parameter.grad)
        by_others = self._in_step or self.plugins or self._within != 1.0
        if not by_others and is_rescaled(at_update, track.accumulated):
            self.trouble(
                f"the step of {type(self.optimizer).__name__} multiplies gradients itself, as a "
                "clipping inside it does: λ of penalties in the loss is told as it was before"
            )

    def trouble(self, text: str) -> None:
        """Note what could not be seen."""
        self.troubles[text] = None


def _is_zero(track: Track, gradient: torch.Tensor) -> bool:
    return not bool(track.sampler.of(gradient).any())
