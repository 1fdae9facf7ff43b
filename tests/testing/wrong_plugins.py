"""Plugins that are wrong on purpose, in ways that were shipped or are near at hand.

``WRONG`` maps the id of each check to the plugin that fails there and nowhere else. ``WIDER`` holds
blunders that no single check could be alone in finding, with all the checks that find them.
"""

from functools import partial
from typing import Any

import torch
import torch.distributed as dist

import regplug
from regplug import Penalty, Plugin, Scheduled, Session, hookimpl


class Strong(Plugin):
    """A plugin with a strength, for the ones below."""

    strength = Scheduled()

    def __init__(self, strength: Any = 0.01, name: str | None = None) -> None:
        self.strength = strength
        self.name = name


def weights(session: Session) -> list[torch.Tensor]:
    """What a careful plugin would act on."""
    selection = regplug.Selection("weights")
    return [w for _, ws, _ in session.updates(selection) for w in ws]


# --- the formula -------------------------------------------------------------------------------


class L1(Penalty):
    separable = True

    def value(self, w):
        return w.abs().sum()

    def gradient(self, w):
        return w.sign()


class DetachedValue(L1):
    """differentiable: computes its value from ``w.data``."""

    def value(self, w):
        return w.data.abs().sum()

    def gradient(self, w):
        return w.sign()


class HalfGradient(Penalty):
    """gradient: states w as the gradient of Σw²."""

    separable = True

    def value(self, w):
        return w.square().sum()

    def gradient(self, w):
        return w


class HalfDetached(Penalty):
    """finite-difference: autograd sees one of two factors only."""

    separable = True

    def value(self, w):
        return (w.detach() * w).sum()


class HalfThreshold(L1):
    """proximal: shrinks by half of step·λ."""

    def proximal(self, w, step):
        threshold = step * self.strength / 2
        return w.sign() * (w.abs() - threshold).clamp(min=0)


class Expansive(L1):
    """proximal: doubles what is left."""

    def proximal(self, w, step):
        return 2 * w.sign() * (w.abs() - step * self.strength).clamp(min=0)


class ByRows(Penalty):
    """separable: says so, but its formula needs two dimensions."""

    separable = True

    def value(self, w):
        return w.abs().sum(dim=1).sum()


class WideGradient(L1):
    """dtype: returns float64, whatever it is given."""

    def gradient(self, w):
        return w.sign().to(torch.float64)


# --- one loop ----------------------------------------------------------------------------------


class StoredGenerator(Strong):
    """every-batch: keeps ``parameters()``, which can be gone through once."""

    @hookimpl
    def on_attach(self, session):
        self._parameters = (p for g in session.groups for p in g["params"])

    @hookimpl
    def on_gradients(self, session):
        for p in self._parameters:
            if p.grad is not None:
                p.grad.add_(p.detach().sign(), alpha=self.strength)


class NeverOff(Strong):
    """zero-strength: a floor under its strength."""

    @hookimpl
    def before_step(self, session):
        for w in weights(session):
            w.mul_(1 - max(self.strength, 1e-6))


class Everything(Strong):
    """untouched: goes through all parameters of the model."""

    @hookimpl
    def after_step(self, session):
        for p in session.model.parameters():
            p.mul_(1 - self.strength)


class Assigns(Strong):
    """adds: puts a new tensor into ``.grad``."""

    @hookimpl
    def on_gradients(self, session):
        for w in weights(session):
            w.grad = w.grad + self.strength * w.detach().sign()


class WaitsForInputGradient(Strong):
    """input-grad: acts on modules through whose input a gradient flows."""

    @hookimpl
    def on_attach(self, session):
        self._seen = set()
        self._hooks = [
            module.register_forward_pre_hook(self._look)
            for module in session.model.modules()
            if isinstance(module, torch.nn.Linear)
        ]

    def _look(self, module, inputs):
        if inputs[0].requires_grad:
            self._seen.add(module)

    @hookimpl
    def on_gradients(self, session):
        for w in weights(session):
            if any(w is module.weight for module in self._seen):
                w.grad.add_(w.detach().sign(), alpha=self.strength)
        self._seen.clear()

    @hookimpl
    def on_detach(self, session):
        for hook in self._hooks:
            hook.remove()


class SoftensGradients(Strong):
    """order: shrinks what the plugins before it have added, and does not say that order matters."""

    order_matters = False

    @hookimpl
    def on_gradients(self, session):
        for w in weights(session):
            w.grad.div_(1 + self.strength * w.grad.abs())


# --- real steps --------------------------------------------------------------------------------


class PerPass(Strong):
    """accumulation: acts once for each backward pass."""

    passes = 0

    @hookimpl
    def on_loss(self, session, loss):
        fresh = all(p.grad is None for p in session.model.parameters())
        self.passes = 1 if fresh else self.passes + 1

    @hookimpl
    def on_gradients(self, session):
        for w in weights(session):
            w.grad.add_(w.detach().sign(), alpha=self.strength * self.passes)


class AlwaysInLoss(L1):
    """clipping: is in the loss, whatever delivery it was told."""

    @hookimpl
    def on_loss(self, session):
        self._settled = "loss"
        return super().on_loss(session)

    @hookimpl
    def on_gradients(self, session):
        pass


class ForgetsScale(Strong):
    """overflow: says that it scales what it adds, and does not."""

    scaled_gradients = True

    @hookimpl
    def on_gradients(self, session):
        for w in weights(session):
            w.grad.add_(w.detach().sign(), alpha=self.strength)


class OwnStepHook(Strong):
    """checkpoint-step: hooks the optimizer itself, which also makes steps that are none."""

    @hookimpl
    def on_attach(self, session):
        self._hook = session.optimizer.register_step_post_hook(self._after)

    def _after(self, optimizer, args, kwargs):
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and found_inf.item():
            return
        with torch.no_grad():
            for group in optimizer.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        p.mul_(1 - self.strength)

    @hookimpl
    def on_detach(self, session):
        self._hook.remove()


# --- ranks -------------------------------------------------------------------------------------


class TimesWorld(Strong):
    """ddp: makes up for an average that does not concern it."""

    @hookimpl
    def on_gradients(self, session):
        for w in weights(session):
            plain = not hasattr(w, "device_mesh")
            world = dist.get_world_size() if plain and dist.is_initialized() else 1
            w.grad.add_(w.detach().sign(), alpha=self.strength * world)


class NormOfShard(Strong):
    """fsdp2: takes the norm of the rows that this rank happens to hold."""

    @hookimpl
    def on_gradients(self, session):
        for w in weights(session):
            part = regplug.local(w).detach()
            regplug.local(w.grad).add_(part / part.norm().clamp(min=1e-9), alpha=self.strength)


class ReportsShard(Strong):
    """ranks: reports a sum over this rank's shards as if it were the whole."""

    @hookimpl
    def before_step(self, session):
        for w in weights(session):
            regplug.local(w).mul_(1 - self.strength)

    @hookimpl
    def on_metrics(self, session):
        covered = session.coverage(regplug.Selection("weights")).trainable
        return {"norm": sum(regplug.local(e.parameter).double().square().sum() for e in covered)}


# --- a plugin's life ---------------------------------------------------------------------------


class Remembers(Strong):
    """Pulls weights towards their moving average, and remembers it as it should."""

    def __init__(self, strength: Any = 0.01, name: str | None = None) -> None:
        super().__init__(strength, name)
        self.steps_seen, self.average = 0, []

    @hookimpl
    def before_step(self, session):
        covered = weights(session)
        if not self.average:
            self.average = [regplug.local(w).clone() * 0.5 for w in covered]
        for w, average in zip(covered, self.average, strict=False):
            part = regplug.local(w)
            if part.shape == average.shape:
                part.add_(average - part, alpha=self.strength)
                average.lerp_(part, 0.1)
        self.steps_seen += 1

    @hookimpl
    def on_state(self, session):
        return {"steps_seen": self.steps_seen, "average": [a.clone() for a in self.average]}

    @hookimpl
    def on_load_state(self, session, state):
        self.steps_seen = state["steps_seen"]
        self.average = [a.clone() for a in state["average"]]


class OddState(Remembers):
    """state: saves a set, which a safe load refuses."""

    @hookimpl
    def on_state(self, session):
        return {**super().on_state(session), "strengths": {frozenset([self.strength])}}


class ForgetsAverage(Remembers):
    """resume: saves how often it acted, but not what it learned."""

    @hookimpl
    def on_state(self, session):
        return {"steps_seen": self.steps_seen}

    @hookimpl
    def on_load_state(self, session, state):
        self.steps_seen = state["steps_seen"]


class LeavesRates(Strong):
    """restore: turns dropout off, for good."""

    @hookimpl
    def on_attach(self, session):
        for module in session.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0


class KeepsSessions(Strong):
    """leak: a list of all sessions there ever were."""

    sessions: list[Session] = []  # noqa: RUF012 - that is what is wrong with it

    @hookimpl
    def on_attach(self, session):
        self.sessions.append(session)


class Hoards(Strong):
    """leak: keeps every gradient there ever was."""

    @hookimpl
    def on_attach(self, session):
        self.history = []

    @hookimpl
    def on_gradients(self, session):
        self.history += [w.grad.clone() for w in weights(session)]


class Swallows(Strong):
    """attribution: goes on without a word when something fails."""

    @hookimpl
    def on_gradients(self, session):
        try:
            for w in weights(session):
                w.grad.add_(w.detach().sign(), alpha=self.strength)
        except Exception:
            pass


class FloatRate(Strong):
    """compile: a rate that changes at each step, as the Python float that the graph is built on."""

    @hookimpl
    def on_attach(self, session):
        self._own = {m: m.p for m in session.model.modules() if isinstance(m, torch.nn.Dropout)}
        self._set(self.strength)

    def _set(self, rate):
        for module in self._own:
            module.p = rate

    @hookimpl
    def after_step(self, session):
        self._set(type(self).strength.at(self, session.steps + 1))

    @hookimpl
    def on_load_state(self, session):
        self._set(self.strength)

    @hookimpl
    def on_detach(self, session):
        for module, rate in self._own.items():
            module.p = rate
        self._own = {}


WRONG = {
    "differentiable": partial(DetachedValue, 0.01),
    "gradient": partial(HalfGradient, 0.01),
    "finite-difference": partial(HalfDetached, 0.01),
    "every-batch": StoredGenerator,
    "zero-strength": NeverOff,
    "untouched": Everything,
    "adds": Assigns,
    "input-grad": WaitsForInputGradient,
    "proximal": partial(HalfThreshold, 0.01),
    "separable": partial(ByRows, 0.01),
    "dtype": partial(WideGradient, 0.01),
    "accumulation": PerPass,
    "clipping": partial(AlwaysInLoss, 0.01),
    "overflow": ForgetsScale,
    "ddp": TimesWorld,
    "fsdp2": NormOfShard,
    "ranks": ReportsShard,
    "checkpoint-step": OwnStepHook,
    "state": OddState,
    "resume": ForgetsAverage,
    "restore": LeavesRates,
    "leak": KeepsSessions,
    "order": SoftensGradients,
    "attribution": Swallows,
    "compile": FloatRate,
}


class Overwrites(Strong):
    """The gradient of the data is lost."""

    @hookimpl
    def on_gradients(self, session):
        for w in weights(session):
            w.grad.copy_(w.detach().sign() * self.strength)


class WholeNorm(Penalty):
    """Calls a norm separable, so that shards and blocks take the norms of parts."""

    separable = True

    def value(self, w):
        return w.norm()


class SeedPerRank(Strong):
    """Noise that makes the replicas drift apart."""

    stochastic = True

    @hookimpl
    def on_attach(self, session):
        rank = dist.get_rank() if dist.is_initialized() else 0
        self._generator = torch.Generator().manual_seed(rank)

    @hookimpl
    def on_gradients(self, session):
        for w in weights(session):
            part = regplug.local(w.grad)
            noise = torch.randn(part.shape, dtype=part.dtype, generator=self._generator)
            part.add_(noise, alpha=self.strength)


class HalfSum(Strong):
    """Adds up in the dtype of the weights, and mixes sharded weights with a plain loss."""

    @hookimpl
    def on_loss(self, session, loss):
        return self.strength * sum(
            e.parameter.abs().sum()
            for e in session.coverage(regplug.Selection("weights")).trainable
        )


WIDER = {
    Overwrites: {"adds", "order", "zero-strength"},
    partial(WholeNorm, 0.01): {"separable", "fsdp2", "ranks"},
    SeedPerRank: {"ranks", "resume"},
    HalfSum: {"dtype", "fsdp2", "ranks"},
    Hoards: {"leak"},
    partial(Expansive, 0.01): {"proximal"},
}
