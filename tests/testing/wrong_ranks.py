"""Plugins that are wrong on purpose among ranks and shards."""

import torch
import torch.distributed as dist

import regplug
from regplug import hookimpl
from tests.testing.wrong_formulas import Strong, weights


class TimesWorld(Strong):
    """ddp: makes up for an average that does not concern it."""

    @hookimpl
    def on_gradients(self, session):
        for w in weights(session):
            plain = not hasattr(w, "device_mesh")
            world = dist.get_world_size() if plain and dist.is_initialized() else 1
            w.grad.add_(w.detach().sign(), alpha=self.signed(session) * world)


class NormOfShard(Strong):
    """fsdp2: takes the norm of the rows that this rank happens to hold."""

    @hookimpl
    def on_gradients(self, session):
        for w in weights(session):
            part = regplug.local(w).detach()
            regplug.local(w.grad).add_(
                part / part.norm().clamp(min=1e-9), alpha=self.signed(session)
            )


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


class SeedPerRank(Strong):
    """Noise that makes the replicas drift apart."""

    stochastic = True

    @hookimpl
    def on_attach(self, session):
        rank = dist.get_rank() if dist.is_initialized() else 0
        self._seed = rank

    @hookimpl
    def on_gradients(self, session):
        for w in weights(session):
            part = regplug.local(w.grad)
            self._seed += 10
            generator = torch.Generator(part.device).manual_seed(self._seed)
            kind = {"dtype": part.dtype, "device": part.device}
            noise = torch.randn(part.shape, generator=generator, **kind)
            part.add_(noise, alpha=self.strength)
