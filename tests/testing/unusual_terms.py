"""Plugins that are right and unusual: terms of outputs and gradients, draws, notes on modules."""

import math

import torch
import torch.distributed as dist
from torch import nn

import regplug
from regplug import hookimpl, local
from regplug.errors import UnsupportedError
from tests.testing.wrong_formulas import Strong


class Outputs(Strong):
    """A term of all outputs since the last one, cut together."""

    @hookimpl
    def on_attach(self, session):
        self._taken = []
        self._handle = session.model.register_forward_hook(self._take)

    def _take(self, module, inputs, output):
        if module.training and torch.is_grad_enabled():
            self._taken.append(output)

    @hookimpl
    def on_loss(self, session):
        taken, self._taken = self._taken, []
        if not taken or not self.strength:
            return None
        outs = torch.cat(taken)
        wide = outs.float() if outs.dtype in regplug.HALVES else outs
        return self.signed(session) * self.term(wide)

    def term(self, outs):
        return -(torch.sigmoid(outs) * nn.functional.logsigmoid(-outs)).mean()

    @hookimpl
    def on_detach(self, session):
        self._handle.remove()
        self._taken = []


class HingedVariance(Outputs):
    """Keeps the outputs of a batch apart: its own, of each rank, as normalizations do."""

    def term(self, outs):
        return torch.relu(3 - outs.flatten(1).var(0, unbiased=False).add(1e-4).sqrt()).mean()


class TakesByClosure(Outputs):
    """Its hook is a function in on_attach, which copies of the model share."""

    @hookimpl
    def on_attach(self, session):
        self._taken = taken = []

        def take(module, inputs, output):
            if module.training and torch.is_grad_enabled():
                taken.append(output)

        self._handle = session.model.register_forward_hook(take)

    @hookimpl
    def on_loss(self, session):
        taken, self_taken = list(self._taken), self._taken
        self_taken.clear()
        if not taken or not self.strength:
            return None
        return self.signed(session) * torch.cat(taken).square().mean()


class NotesItsTerm(Outputs):
    """Leaves its last term on the model, as a number to be shown, while it is attached."""

    @hookimpl
    def on_loss(self, session):
        term = super().on_loss(session)
        session.model.last_term = 0.0 if term is None else float(term.detach())
        return term

    @hookimpl
    def on_detach(self, session):
        super().on_detach(session)
        vars(session.model).pop("last_term", None)


class Critic(Outputs):
    """A critic of the outputs, as in adversarial training, which is trained after each step."""

    def waits_for_loss(self, session):
        return True

    @hookimpl
    def on_attach(self, session):
        super().on_attach(session)
        if dist.is_initialized():
            raise UnsupportedError("each rank would train a critic of its own")
        first = next(session.model.parameters())
        kind = first.dtype if first.dtype == torch.float64 else torch.float32
        drawn = torch.Generator("cpu").manual_seed(0)
        sizes = ((1, 4), (4, 1))
        cpu = [torch.randn(*s, generator=drawn, dtype=kind, device="cpu") for s in sizes]
        self._critic = [t.to(first.device) for t in cpu]
        self._last = None

    def _score(self, outs):
        one, two = self._critic
        return (torch.tanh(outs.reshape(-1, 1).to(one.dtype) @ one) @ two).mean()

    def term(self, outs):
        self._last = outs.detach()
        return -self._score(outs)

    @hookimpl
    def after_step(self, session):
        if self._last is None or not self.strength:
            return
        with torch.enable_grad():
            for t in self._critic:
                t.requires_grad_()
            loss = self._score(self._last) + sum(t.square().sum() for t in self._critic)
            gradients = torch.autograd.grad(loss, self._critic)
        pairs = zip(self._critic, gradients, strict=True)
        self._critic, self._last = [t.detach() - 0.01 * g for t, g in pairs], None

    @hookimpl
    def on_state(self, session):
        return {"critic": [t.detach().clone() for t in self._critic]}

    @hookimpl
    def on_load_state(self, session, state):
        if state:
            pairs = zip(state["critic"], self._critic, strict=True)
            self._critic = [t.to(mine) for t, mine in pairs]


class RunsTwice(Strong):
    """R-Drop: runs the model a second time on its input, and both outputs are to agree."""

    stochastic = True
    shapes_loss = True

    @hookimpl
    def on_attach(self, session):
        self._seen, self._again = [], False
        self._handle = session.model.register_forward_hook(self._take)

    def _take(self, module, inputs, output):
        if module.training and torch.is_grad_enabled() and not self._again:
            self._seen.append((inputs, output))

    @hookimpl
    def on_loss(self, session):
        seen, self._seen = self._seen, []
        if not seen or not self.strength:
            return None
        self._again = True
        try:
            gaps = [session.model(*inputs) - out for inputs, out in seen]
        finally:
            self._again = False
        return self.signed(session) * torch.cat(gaps).float().square().mean()

    @hookimpl
    def on_detach(self, session):
        self._handle.remove()
        self._seen = []


class GradientOf(regplug.Plugin):
    """λ·‖∂L/∂w‖² over what is selected; all that is trained follows it."""

    shapes_loss = True
    strength = regplug.Scheduled()

    def __init__(self, strength=0.01, *, where="weights", name=None):
        self.strength, self.where, self.name = strength, where, name

    @property
    def where(self):
        return self._selection.where

    @where.setter
    def where(self, where):
        self._selection = regplug.Selection(where)

    @hookimpl
    def on_attach(self, session):
        if any(hasattr(e.parameter, "full_tensor") for e in session.coverage(self._selection)):
            raise UnsupportedError("it needs whole weights: use DDP")

    @hookimpl
    def on_loss(self, session, loss):
        if not self.strength or not torch.is_grad_enabled() or not loss.requires_grad:
            return None
        covered = [e.parameter for e in session.coverage(self._selection)]
        trained = [w for w in covered if w.requires_grad]
        found = torch.autograd.grad(loss, trained, create_graph=True, allow_unused=True)
        squares = [g.double().square().sum() for g in found if g is not None]
        sign = -1 if any(group.get("maximize") for group in session.groups) else 1
        return sign * self.strength * torch.stack(squares).sum().to(loss.dtype)


class DropsGradients(regplug.Selective):
    """Leaves out elements of gradients by chance, by a stream for each weight and step."""

    stochastic = True
    order_matters = True
    share = regplug.Scheduled(high=1.0)

    def __init__(self, share=0.3, *, where="weights", name=None):
        self.share, self.where, self.name = share, where, name

    @hookimpl
    def on_attach(self, session):
        session.coverage(self._selection)

    @hookimpl
    def on_gradients(self, session):
        places = {id(p): place for place, p in enumerate(session.model.parameters())}
        for _, ws, gradients in self.by_part(session):
            for w, g in zip(ws, gradients, strict=True):
                drawn = torch.Generator("cpu").manual_seed(10_007 * session.steps + places[id(w)])
                whole = torch.rand(tuple(w.shape), generator=drawn, device="cpu") >= self.share
                kept = regplug.part(whole, w) if hasattr(w, "full_tensor") else whole
                local(g).mul_(kept.to(local(g)))


class LargestByHalf(regplug.Selective):
    """Keeps the largest half of each weight, whose bound it finds in single precision."""

    projects = False

    def __init__(self, *, where="weights", name=None):
        self.where, self.name = where, name

    @hookimpl
    def on_attach(self, session):
        session.coverage(self._selection)

    @hookimpl
    def after_step(self, session):
        for _, ws, _ in self.by_part(session):
            for w in ws:
                whole = regplug.full(w.detach()).abs().float().flatten()
                bound = whole.kthvalue(max(1, math.ceil(whole.numel() / 2))).values
                piece = local(w)
                piece.mul_(piece.abs() >= bound.to(piece.dtype))


class Lookahead(regplug.Selective):
    """Lets slow weights follow after each step, and goes back to these."""

    order_matters = True
    projects = False
    share = regplug.Scheduled(high=1.0, off=1.0)

    def __init__(self, share=0.5, *, where="all", name=None):
        self.share, self.where, self.name = share, where, name

    @hookimpl
    def on_attach(self, session):
        covered = session.coverage(self._selection)
        self._slow = {entry.name: entry.parameter.detach().clone() for entry in covered}

    @hookimpl
    def after_step(self, session):
        if self.share == 1:
            return
        names = {id(p): name for name, p in session.model.named_parameters()}
        for _, ws, _ in self.by_part(session):
            for w in ws:
                slow = self._slow.setdefault(names[id(w)], w.detach().clone())
                local(slow).lerp_(local(w.detach()), self.share)
                local(w).copy_(local(slow))

    @hookimpl
    def on_state(self, session):
        return {"slow": dict(self._slow)}

    @hookimpl
    def on_load_state(self, session, state):
        for name, t in state.get("slow", {}).items():
            local(self._slow[name]).copy_(local(t))
