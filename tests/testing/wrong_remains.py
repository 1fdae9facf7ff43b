"""Plugins that are wrong on purpose in what they leave behind on the loop."""

import copy

import torch
from torch import nn

from regplug import hookimpl
from tests.testing.wrong_formulas import Strong, weights


class Shrinks(Strong):
    """Right in itself: shrinks the weights a little."""

    @hookimpl
    def before_step(self, session):
        for w in weights(session):
            w.mul_(1 - self.strength)


class KeepsInOptimizerState(Shrinks):
    """Keeps its average where the optimizer keeps its own, for good."""

    @hookimpl
    def after_step(self, session):
        for w in weights(session):
            session.optimizer.state[w].setdefault("average", w.detach().clone())


class MarksWeights(Shrinks):
    """Notes on each weight that it has been there."""

    @hookimpl
    def before_step(self, session):
        super().before_step(session)
        for w in weights(session):
            w.regularized = True


class PatchesForward(Shrinks):
    """Wraps the forward of one module, and puts a bound method in its place at detach."""

    @hookimpl
    def on_attach(self, session):
        self._module = next(m for m in session.model.modules() if isinstance(m, nn.LayerNorm))
        plain = self._plain = self._module.forward
        self._module.forward = lambda x: plain(x)  # noqa: PLW0108 - another function

    @hookimpl
    def on_detach(self, session):
        self._module.forward = self._plain  # an attribute of the instance: it was the class's


class ScalesBuffers(Strong):
    """Shrinks all that ``state_dict`` knows, buffers too."""

    @hookimpl
    def before_step(self, session):
        for w in weights(session):
            w.mul_(1 - self.strength)
        for buffer in session.model.buffers():
            if buffer.is_floating_point():
                buffer.mul_(1 - self.strength)


class LeavesBuffer(Shrinks):
    """Registers a buffer that is not taken off again."""

    @hookimpl
    def on_attach(self, session):
        session.model.register_buffer("shrunk_by", torch.tensor(0.0), persistent=False)


class ReplacesMemory(Strong):
    """Puts new memory under each weight."""

    @hookimpl
    def before_step(self, session):
        for w in weights(session):
            w.data = w.data * (1 - self.strength)


class LeavesTensorHooks(Shrinks):
    """Hooks the gradient of each weight, and removes the last hook only."""

    @hookimpl
    def on_attach(self, session):
        for p in session.model.parameters():
            self._hook = p.register_post_accumulate_grad_hook(lambda p: None)

    @hookimpl
    def on_detach(self, session):
        self._hook.remove()


class ForgetsAfterFailure(Shrinks):
    """Takes its key out of the groups at the end of a step, which a failed step does not reach."""

    @hookimpl
    def on_gradients(self, session):
        for group in session.groups:
            group["shrunk_by"] = self.strength

    @hookimpl
    def after_step(self, session):
        for group in session.groups:
            del group["shrunk_by"]


class RestoresGroups(Shrinks):
    """Puts back a copy of the whole of each group, the user's learning rate in it."""

    @hookimpl
    def on_attach(self, session):
        groups = session.optimizer.param_groups if session.optimizer else []
        self._before = [{k: v for k, v in g.items() if k != "params"} for g in groups]

    @hookimpl
    def on_detach(self, session):
        for group, before in zip(session.groups, self._before, strict=False):
            group.update(before)


class RestoresModes(Shrinks):
    """Puts back the mode that each module was in at attach."""

    @hookimpl
    def on_attach(self, session):
        self._modes = [(m, m.training) for m in session.model.modules()]

    @hookimpl
    def on_detach(self, session):
        for module, training in self._modes:
            module.training = training


class RestoresState(Shrinks):
    """Puts back the optimizer's state, without the momentum of the steps since."""

    @hookimpl
    def on_attach(self, session):
        self._before = copy.deepcopy(session.optimizer.state_dict()["state"])

    @hookimpl
    def on_detach(self, session):
        session.optimizer.state.clear()
        session.optimizer.state.update(self._before)


class HidesInClosure(Shrinks):
    """Wraps a submodule's dropout function in a way that no attribute's name shows."""

    @hookimpl
    def on_attach(self, session):
        for module in session.model.modules():
            if type(module) is nn.Tanh:
                module.__class__ = _Louder

    @hookimpl
    def on_detach(self, session):
        pass


class _Louder(nn.Tanh):
    def forward(self, x):
        return 1.001 * super().forward(x)


class TwiceUndone(Shrinks):
    """Multiplies a rate back at detach, without noting that it was done."""

    @hookimpl
    def on_attach(self, session):
        self._modules = [m for m in session.model.modules() if isinstance(m, nn.Dropout)]
        for module in self._modules:
            module.p *= 0.5

    @hookimpl
    def on_detach(self, session):
        for module in self._modules:
            module.p = 2 * module.p + 1e-9


class NotesAtTheEnd(Shrinks):
    """Notes its hooks once all are registered: one that fails leaves the others."""

    _handles = ()

    @hookimpl
    def on_attach(self, session):
        handles = []
        for module in session.model.modules():
            if isinstance(module, nn.Linear):
                handles.append(module.register_forward_hook(self._watch))  # noqa: PERF401
        self._handles = handles

    def _watch(self, module, inputs, output):
        pass

    @hookimpl
    def on_detach(self, session):
        for handle in self._handles:
            handle.remove()
        self._handles = ()


class ChecksLate(Shrinks):
    """Turns dropout off, then asks what it covers, and restores only what a flag says it did."""

    _attached = False

    @hookimpl
    def on_attach(self, session):
        self._own = {m: m.p for m in session.model.modules() if isinstance(m, nn.Dropout)}
        for module in self._own:
            module.p = 0.0
        self._names = [name for name, _ in session.model.named_parameters()]
        self._attached = True

    @hookimpl
    def on_detach(self, session):
        if self._attached:
            for module, rate in self._own.items():
                module.p = rate


# --- right ones that look alike ------------------------------------------------------------------


class NotesEach(NotesAtTheEnd):
    """Right: notes each hook as it is registered."""

    @hookimpl
    def on_attach(self, session):
        self._handles = []
        for module in session.model.modules():
            if isinstance(module, nn.Linear):
                self._handles.append(module.register_forward_hook(self._watch))


class TakesStateBack(KeepsInOptimizerState):
    """Right: takes its key out of the optimizer's state."""

    @hookimpl
    def on_detach(self, session):
        for state in session.optimizer.state.values():
            state.pop("average", None)


class UnpatchesForward(PatchesForward):
    """Right: takes its own forward off, so that the class's is found again."""

    @hookimpl
    def on_detach(self, session):
        vars(self._module).pop("forward", None)
