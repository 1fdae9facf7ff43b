"""Recorded runs: the numbers against plain torch, the files read back, and what may go wrong."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import regplug
from regplug.errors import SpecError
from regplug.report.recorder import Recorder
from tests.helpers.accelerating import forget_accelerate


def loop(plugins, **options):
    """Return a session on a small model, a function that makes a step, and a recorder."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 2)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    x = torch.randn(12, 6, dtype=torch.float64)
    session = regplug.attach(model, optimizer, plugins, name="net")
    recorder = Recorder(session, **options)

    def step():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        recorder.note(loss=loss)
        optimizer.step()
        return loss.item()

    return session, step, recorder


PROXIMAL = "l1(piecewise({0: 0.01, 3: 0.3}), delivery='proximal')"


def test_rows_and_layers_are_what_torch_says_at_these_steps():
    session, step, recorder = loop([PROXIMAL, "dropout(linear(0.4, 0, steps=8))"], every=2)
    weights = {"0.weight": session.model[0].weight, "3.weight": session.model[3].weight}
    expected, layers, losses = [], [], []
    for number in range(7):
        if number % 2 == 0:
            whole = torch.cat([w.detach().flatten() for w in weights.values()])
            expected.append(
                {
                    "step": number,
                    "l1/value": (0.3 if number >= 3 else 0.01) * whole.abs().sum().item(),
                    "l1/strength": 0.3 if number >= 3 else 0.01,
                    "l1/zeros": (whole == 0).double().mean().item(),
                    "dropout/rate": 0.4 * (1 - number / 8),
                }
                | ({"loss": losses[-1]} if losses else {})
            )
            layers += [
                (number, name, w.numel(), int((w == 0).sum()), w.norm().item())
                for name, w in weights.items()
            ]
        losses.append(step())
    assert [row.keys() for row in recorder.rows] == [row.keys() for row in expected]
    for row, wanted in zip(recorder.rows, expected, strict=True):
        assert row == pytest.approx(wanted, rel=1e-12, abs=1e-15)
    assert 0 < recorder.rows[-1]["l1/zeros"] < 1
    for ours, theirs in zip(recorder.layers, layers, strict=True):
        assert (ours.step, ours.layer, ours.weights, ours.zeros) == theirs[:4]
        assert ours.norm == pytest.approx(theirs[4], rel=1e-12)


def test_histograms_count_every_weight_in_its_bin():
    session, step, recorder = loop([PROXIMAL], every=100)
    before = torch.cat([session.model[i].weight.detach().flatten() for i in (0, 3)])
    for _ in range(6):
        step()
    recorder.refresh()
    after = torch.cat([session.model[i].weight.detach().flatten() for i in (0, 3)])
    for weights, histogram in ((before, recorder.before), (after, recorder.after)):
        limit = histogram.limit
        expected, _ = np.histogram(
            weights.clamp(-limit, limit).float(), len(histogram.counts), (-limit, limit)
        )
        assert histogram.counts == expected.tolist()
        assert sum(histogram.counts) == 64
    assert recorder.after.counts[len(recorder.after.counts) // 2] >= (after == 0).sum() > 0


def test_an_open_distance_keeps_a_long_run_short():
    _, step, recorder = loop(["l2(1e-3)"])
    for _ in range(600):
        step()
    recorder.refresh()
    steps = [int(row["step"]) for row in recorder.rows]
    assert len(steps) <= 130
    assert steps[0] == 0
    assert steps[-1] == 600
    assert steps[:-1] == list(range(0, 600, 8))
    assert {layer.step for layer in recorder.layers} == set(steps)


class Asked(regplug.Plugin):
    """Counts how often it is asked for metrics."""

    times = 0

    @regplug.hookimpl
    def on_metrics(self, session):
        self.times += 1
        return {"times": self.times}


def test_steps_in_between_compute_nothing():
    plugin = Asked()
    _, step, recorder = loop([plugin], every=5)
    for _ in range(14):
        step()
    assert plugin.times == 3
    recorder.close()
    for _ in range(10):
        step()
    assert plugin.times == 3


def test_files_hold_the_rows(tmp_path):
    _, step, recorder = loop([PROXIMAL], every=2)
    for _ in range(5):
        step()
    written = recorder.write(tmp_path / "new" / "folder")
    assert {path.name for path in written} == {
        "net.csv",
        "net.layers.csv",
        "net.png",
        "net.json",
    }
    folder = tmp_path / "new" / "folder"
    with (folder / "net.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["step"]) for row in rows] == [0, 2, 4, 5]
    assert [float(r["l1/value"]) for r in rows] == [r["l1/value"] for r in recorder.rows]
    with (folder / "net.layers.csv").open() as stream:
        assert [row["layer"] for row in csv.DictReader(stream)] == ["0.weight", "3.weight"] * 4
    content = json.loads((folder / "net.json").read_text())
    assert content["rows"] == recorder.rows
    assert content["steps"] == 5
    assert content["plugins"] == [
        {"name": "l1", "source": f"regplug {regplug.__version__}", "acts": "proximal"}
    ]
    assert content["missing"] == recorder.missing == []


def test_the_picture_shows_every_panel(tmp_path):
    from matplotlib.image import imread

    _, step, recorder = loop([PROXIMAL, "dropout(linear(0.4, 0, steps=8))"])
    for _ in range(8):
        step()
    recorder.write(tmp_path)
    pixels = imread(tmp_path / "net.png")[..., :3]
    height, width = pixels.shape[:2]
    assert width > height > 500
    # In each panel, of two rows and three columns, something coloured is drawn.
    for row in range(2):
        for column in range(3):
            panel = pixels[
                row * height // 2 : (row + 1) * height // 2,
                column * width // 3 : (column + 1) * width // 3,
            ]
            assert (np.ptp(panel, axis=-1) > 0.2).mean() > 1e-3, (row, column)


def test_tables_grow_during_the_run(tmp_path):
    _, step, recorder = loop(["l1(1e-2)"], every=1, folder=tmp_path)
    for number in range(3):
        lines = (tmp_path / "net.csv").read_text().splitlines()
        assert len(lines) == 2 + number
        step()
    recorder.write()
    assert len((tmp_path / "net.csv").read_text().splitlines()) == 5


def test_without_matplotlib_only_the_picture_is_missing(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    _, step, recorder = loop(["l1(1e-2)"])
    step()
    with pytest.warns(UserWarning, match="no picture without matplotlib"):
        assert {path.suffix for path in recorder.write(tmp_path)} == {".csv", ".json"}
    assert recorder.missing == ["net.png (no picture without matplotlib: regplug[plots])"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full to be a full disk")
def test_a_full_disk_does_not_end_the_training(tmp_path):
    for name in ("net.csv", "net.json"):
        (tmp_path / name).symlink_to("/dev/full")
    with pytest.warns(UserWarning, match=r"net\.csv from step 0 on \(No space left"):
        session, step, recorder = loop(["l1(1e-2)"], every=1, folder=tmp_path)
    for _ in range(3):
        step()
    assert session.steps == 3
    assert len(recorder.rows) == 4
    with pytest.warns(UserWarning, match=r"net\.json \(No space left"):
        assert {path.name for path in recorder.write()} == {"net.layers.csv", "net.png"}
    assert recorder.missing == [
        "net.csv from step 0 on (No space left on device)",
        "net.json (No space left on device)",
    ]


def test_a_loop_without_an_optimizer_is_recorded_too():
    model = nn.Linear(3, 1)
    session = regplug.attach(model, plugins=["l2(0.1)"])
    recorder = Recorder(session, every=1)
    for _ in range(2):
        model(torch.ones(1, 3)).sum().backward()
        with session.step(), torch.no_grad():
            for p in model.parameters():
                p.sub_(0.1 * p.grad)
    assert [row["step"] for row in recorder.rows] == [0, 1, 2]
    session.detach()
    model(torch.ones(1, 3)).sum().backward()
    with session.step():
        pass
    assert len(recorder.rows) == 3


def test_rows_go_to_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path) as writer:
        _, step, recorder = loop(["l1(1e-2)"], every=2, to=writer)
        for _ in range(4):
            step()
    events = EventAccumulator(str(tmp_path)).Reload()
    for key in ("l1/value", "l1/zeros"):
        found = [(e.step, e.value) for e in events.Scalars(f"net/{key}")]
        assert found == [
            (int(row["step"]), pytest.approx(row[key], rel=1e-6)) for row in recorder.rows
        ]
    assert len(events.Scalars("net/loss")) == 2


def test_rows_go_to_the_trackers_of_accelerate(tmp_path):
    from accelerate import Accelerator
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=tmp_path)
    try:
        accelerator.init_trackers("run")
        _, step, recorder = loop(["l2(1e-2)"], every=1, to=[accelerator])
        for _ in range(2):
            step()
        accelerator.end_training()
    finally:
        forget_accelerate()
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert [e.step for e in events.Scalars("net/l2/value")] == [0, 1, 2]
    assert len(recorder.rows) == 3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"every": 0}, "every must be at least 1"),
        ({"every": 0.5}, "every must be a whole number"),
        ({"every": True}, "every must be a whole number"),
        ({"to": [object()]}, "to= takes TensorBoard writers"),
    ],
)
def test_wrong_arguments_are_named(options, says):
    with pytest.raises(SpecError, match=says):
        loop(["l1(1e-2)"], **options)


def test_a_recorder_without_a_folder_says_so():
    _, _, recorder = loop(["l1(1e-2)"])
    with pytest.raises(SpecError, match="folder is not known"):
        recorder.write()


def sharded_rows(rank, folder):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 1)).double()
    if folder is not None:
        for layer in model:
            fully_shard(layer, mesh=init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = regplug.attach(model, optimizer, ["l1(0.2, delivery='proximal')"], name="net")
    recorder = Recorder(session, every=1, folder=folder)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(2, 5, dtype=torch.float64)).square().mean().backward()
        optimizer.step()
    recorder.refresh()
    written = recorder.write() if folder is not None else []
    layers = [(x.step, x.layer, x.weights, x.zeros, x.norm) for x in recorder.layers]
    return recorder.rows, layers, recorder.before.counts, recorder.after.counts, len(written)


def test_a_sharded_model_is_recorded_as_a_whole_and_written_once(pair, tmp_path):
    rows, layers, *counts, _ = sharded_rows(0, None)
    for rank, theirs in enumerate(pair.run(sharded_rows, str(tmp_path))):
        for row, other in zip(rows, theirs[0], strict=True):
            assert row == pytest.approx(other, rel=1e-12, abs=1e-15)
        for layer, other in zip(layers, theirs[1], strict=True):
            assert layer[:4] == other[:4]
            assert layer[4] == pytest.approx(other[4], rel=1e-12)
        assert list(theirs[2:4]) == counts
        assert theirs[4] == (0 if rank else 4)
