"""PyTorch Lightning, automatic and manual optimization, against plain loops."""

import logging
import warnings

import pytest
import torch
from torch import nn

import regplug
from regplug.errors import SpecError, StateError
from tests.helpers.compare import same
from tests.helpers.nets import tanh_net

pytestmark = pytest.mark.frameworks

PLUGINS = ["l1(linear(0.1, 0, steps=8), delivery='proximal')", "weight_decay(0.3)"]


@pytest.fixture(scope="module")
def lightning():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages that it imports
        import lightning.pytorch as pl
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    return pl


def loader(rows=16):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(rows, 3, generator=generator)
    dataset = torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True))
    return torch.utils.data.DataLoader(dataset, batch_size=4)


def fit(pl, module, folder, *, callbacks=(), epochs=2, resume=None, **options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*")  # advice on workers, log intervals, …
        trainer = pl.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            callbacks=list(callbacks),
            **options,
        )
        trainer.fit(module, loader(), ckpt_path=resume)
    return trainer


def automatic(pl, attach=()):
    class Automatic(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = tanh_net(3, 4, 1)

        def training_step(self, batch, index):
            x, y = batch
            return nn.functional.mse_loss(self.net(x), y)

        def configure_optimizers(self):
            optimizer = torch.optim.Adam(self.parameters(), lr=0.02)
            if attach:
                self.sessions = [regplug.attach(self, optimizer, attach)]
            return optimizer

    return Automatic()


def plain(accumulate=1, clip=None, plugins=PLUGINS, epochs=2):
    """The loop that Lightning runs, written out."""
    net = tanh_net(3, 4, 1)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    session = regplug.attach(net, optimizer, plugins)
    for _ in range(epochs):
        for number, (x, y) in enumerate(loader(), start=1):
            (nn.functional.mse_loss(net(x), y) / accumulate).backward()
            if number % accumulate == 0:
                if clip:
                    nn.utils.clip_grad_norm_(net.parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()
    return net, session


@pytest.mark.parametrize("way", ["attach", "callback"])
def test_automatic_optimization_with_accumulation_and_clipping(way, lightning, tmp_path):
    from regplug.integrations.lightning import RegplugCallback

    module = automatic(lightning, PLUGINS if way == "attach" else ())
    callback = RegplugCallback(PLUGINS)
    fit(
        lightning,
        module,
        tmp_path,
        callbacks=[callback] if way == "callback" else [],
        accumulate_grad_batches=2,
        gradient_clip_val=0.5,
    )
    net, session = plain(accumulate=2, clip=0.5)
    sessions = callback.sessions.values() if way == "callback" else module.sessions
    assert [s.steps for s in sessions] == [session.steps] == [4]
    for ours, theirs in zip(module.net.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert (module.net[0].weight == 0).equal(net[0].weight == 0)


def manual(pl):
    class Manual(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.a, self.b = tanh_net(3, 4, 1), tanh_net(3, 4, 1)

        def training_step(self, batch, index):
            x, y = batch
            for net, optimizer in zip((self.a, self.b), self.optimizers(), strict=True):
                optimizer.zero_grad()
                self.manual_backward(nn.functional.mse_loss(net(x), y))
                optimizer.step()

        def configure_optimizers(self):
            return [torch.optim.Adam(net.parameters(), lr=0.02) for net in (self.a, self.b)]

    return Manual()


def test_manual_optimization_with_two_optimizers(lightning, tmp_path):
    from regplug.integrations.lightning import RegplugCallback

    callback = RegplugCallback({0: PLUGINS, 1: ["l2(0.1)"]})
    module = manual(lightning)
    fit(lightning, module, tmp_path, callbacks=[callback])
    assert same(module.a, plain()[0])
    assert same(module.b, plain(plugins=["l2(0.1)"])[0])
    with pytest.raises(SpecError, match="plugins are for optimizer 2, but there are 2"):
        fit(lightning, manual(lightning), tmp_path, callbacks=[RegplugCallback({2: ["l2(1)"]})])


def test_checkpoints_hold_the_sessions(lightning, tmp_path):
    from regplug.integrations.lightning import RegplugCallback

    whole, first, second = (automatic(lightning) for _ in range(3))
    fit(lightning, whole, tmp_path, callbacks=[RegplugCallback(PLUGINS)])
    trainer = fit(lightning, first, tmp_path, callbacks=[RegplugCallback(PLUGINS)], epochs=1)
    path = str(tmp_path / "half.ckpt")
    trainer.save_checkpoint(path)
    callback = RegplugCallback(PLUGINS)
    fit(lightning, second, tmp_path, callbacks=[callback], resume=path)
    assert callback.sessions[0].steps == 8
    assert same(second.net, whole.net)
    other = RegplugCallback(["l2(0.1)"])
    with pytest.raises(StateError, match="of the plugins"):
        fit(lightning, automatic(lightning), tmp_path, callbacks=[other], resume=path)
