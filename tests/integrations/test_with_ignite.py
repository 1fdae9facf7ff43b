"""Ignite: plain attach, and its own Checkpoint takes a session as it is."""

import warnings

import pytest
import torch
from torch import nn

import regplug

pytestmark = pytest.mark.frameworks


@pytest.fixture(scope="module")
def ignite():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it decorates with torch.jit.script
        import ignite.engine
        import ignite.handlers
    return ignite


def parts():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.2), nn.Linear(4, 1))
    return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


PLUGINS = ["l1(linear(0.1, 0, steps=6), delivery='proximal')", "dropout(linear(0.5, 0, steps=6))"]
DATA = [(torch.randn(5, 3), torch.randn(5, 1)) for _ in range(3)]


def train(ignite, epochs, folder, resume=None):
    from ignite.handlers import Checkpoint, DiskSaver

    model, optimizer = parts()
    session = regplug.attach(model, optimizer, PLUGINS)
    trainer = ignite.engine.create_supervised_trainer(model, optimizer, nn.functional.mse_loss)
    to_save = {"model": model, "optimizer": optimizer, "trainer": trainer, "regplug": session}
    if resume is not None:
        Checkpoint.load_objects(to_save, torch.load(resume, weights_only=True))
    saver = Checkpoint(to_save, DiskSaver(str(folder), require_empty=False), n_saved=None)
    trainer.add_event_handler(ignite.engine.Events.EPOCH_COMPLETED, saver)
    trainer.add_event_handler(
        ignite.engine.Events.EPOCH_STARTED, lambda engine: torch.manual_seed(engine.state.epoch)
    )
    trainer.run(DATA, max_epochs=epochs)
    return model, session


def test_an_engine_trains_as_a_plain_loop(ignite, tmp_path):
    model, session = train(ignite, 2, tmp_path)
    other, optimizer = parts()
    regplug.attach(other, optimizer, PLUGINS)
    for epoch in (1, 2):
        torch.manual_seed(epoch)
        for x, y in DATA:
            optimizer.zero_grad()
            nn.functional.mse_loss(other(x), y).backward()
            optimizer.step()
    assert session.steps == 6
    assert all(map(torch.equal, model.parameters(), other.parameters()))


def test_its_checkpoints_hold_the_session(ignite, tmp_path):
    whole, _ = train(ignite, 2, tmp_path)
    (first,) = tmp_path.glob("checkpoint_3.pt")
    resumed, session = train(ignite, 2, tmp_path / "again", resume=first)
    assert session.steps == 6
    assert all(map(torch.equal, resumed.parameters(), whole.parameters()))
