"""The files of a recorded run: columns that come later, folders that are not there, odd numbers."""

import csv
import json
import math
import os
import shutil
import warnings
from pathlib import Path

import pytest
import torch

from regplug.errors import SpecError
from regplug.report.recorder import Recorder
from tests.report.test_report import loop


def table(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def same(rows, recorded):
    """Whether the table's rows are the recorded ones, with nothing where nothing was noted."""
    assert [{k: float(v) for k, v in row.items() if v} for row in rows] == recorded


@pytest.mark.parametrize("every", [1, 3])
def test_what_is_noted_later_has_its_column_in_the_table(every, tmp_path):
    folder = tmp_path / "out" / "deep"  # not there yet
    _, step, recorder = loop(["l1(1e-2)"], every=every, folder=folder)
    for number in range(7):
        step()  # notes the loss, after step 0
        if number > 3:
            recorder.note(accuracy=0.5 + number / 100, rate=torch.tensor(number))
    recorder.record()
    rows = table(folder / "net.csv")
    assert list(rows[0]) == [
        *("step", "l1/value", "l1/strength", "l1/zeros", "loss"),
        *("accuracy", "rate"),
    ]
    assert rows[0]["loss"] == ""
    same(rows, recorder.rows)
    assert {path.name for path in recorder.write()} == {
        *("net.csv", "net.layers.csv", "net.png", "net.json"),
    }
    same(table(folder / "net.csv"), recorder.rows)
    assert recorder.missing == []
    assert sorted(path.name for path in folder.iterdir()) == [
        *("net.csv", "net.json", "net.layers.csv", "net.png"),
    ]


def test_a_long_run_keeps_every_row_when_a_column_comes(tmp_path):
    _, step, recorder = loop(["l1(1e-2)"], folder=tmp_path)
    for _ in range(300):
        step()
    before = table(tmp_path / "net.csv")
    recorder.note(late=1.0)
    for _ in range(20):
        step()
    after = table(tmp_path / "net.csv")
    assert len(before) > len(recorder.rows) - 20
    assert [{**row, "late": ""} for row in before] == after[: len(before)]
    assert float(after[-1]["late"]) == 1.0


def test_a_folder_that_can_not_be_made_is_told_at_once_and_once(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.warns(UserWarning, match=r"net\.\S*csv from step 0 on \(Not a directory\)"):
        session, step, recorder = loop(["l1(1e-2)"], every=1, folder=tmp_path / "file" / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            step()
    assert session.steps == 3
    assert len(recorder.rows) == 4
    with pytest.warns(UserWarning, match=r"net\.\w+ \(Not a directory\)"):
        assert recorder.write() == []
    assert len(recorder.missing) == 4
    # All of it is still at hand.
    assert len(recorder.write(tmp_path / "elsewhere")) == 4


def test_a_folder_that_is_removed_meanwhile_is_made_again_and_what_is_lost_is_told(tmp_path):
    _, step, _ = loop(["l1(1e-2)"], every=1, folder=tmp_path / "out")
    step()
    shutil.rmtree(tmp_path / "out")
    with pytest.warns(UserWarning, match=r"net\.\S*csv before step 2 \(it was removed\)"):
        step()
    step()
    assert [row["step"] for row in table(tmp_path / "out" / "net.csv")] == ["2", "3"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full to be a full disk")
def test_a_column_that_comes_when_the_disk_is_full_loses_no_row(tmp_path, monkeypatch):
    _, step, _ = loop(["l1(1e-2)"], every=1, folder=tmp_path)
    real = Path.open

    def full(path, mode="r", *args, **kwargs):
        if mode == "w" and "net.csv" in path.name:
            path = Path("/dev/full")
        return real(path, mode, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", full)
        with pytest.warns(UserWarning, match=r"net\.csv: the column loss \(No space left"):
            step()
        step()
    assert [row["step"] for row in table(tmp_path / "net.csv")] == ["0", "1", "2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.csv", "net.layers.csv"]


def test_json_of_a_run_that_diverged_is_json(tmp_path):
    session, step, recorder = loop(["l1(1e-2)"], every=1, folder=tmp_path)
    step()
    recorder.note(loss=math.nan, gain=math.inf)
    with torch.no_grad():
        session.model[0].weight.fill_(math.nan)
        session.model[3].weight[0, 0] = -math.inf
    recorder.note(loss=torch.tensor(math.nan))
    recorder._noted["loss"] = math.nan
    session.after_update()  # a step that finds them so
    recorder.refresh()
    written = recorder.write()
    assert len(written) == 4
    assert recorder.missing == []

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    content = json.loads((tmp_path / "net.json").read_text(), parse_constant=refuse)
    last = content["rows"][-1]
    assert last["loss"] is None
    assert last["gain"] is None
    assert last["l1/value"] is None
    assert content["layers"][-1]["norm"] is None
    assert content["rows"][0]["l1/value"] == recorder.rows[0]["l1/value"]
    # The table has them as they are.
    assert table(tmp_path / "net.csv")[-1]["loss"] == "nan"
    assert table(tmp_path / "net.csv")[-1]["gain"] == "inf"


@pytest.mark.parametrize(
    ("noted", "says"),
    [
        ({"loss": torch.ones(2)}, "loss=.* is no single number"),
        ({"loss": "high"}, "loss='high' is no single number"),
        ({"loss": None}, "loss=None is no single number"),
        ({"loss": [1.0]}, "is no single number"),
        ({"step": 3}, "step is the recorder's own"),
        ({"l1/value": 3}, "l1/value is the session's own"),
    ],
)
def test_what_is_no_number_is_refused_where_it_is_noted(noted, says):
    _, step, recorder = loop(["l1(1e-2)"], every=1)
    with pytest.raises(SpecError, match=says):
        recorder.note(**noted)
    step()  # goes on
    assert len(recorder.rows) == 2


@pytest.mark.skipif(os.name == "nt", reason="names of files")
def test_a_session_whose_name_is_no_name_of_a_file_is_told(tmp_path):
    import regplug

    model = torch.nn.Linear(2, 1)
    session = regplug.attach(model, plugins=["l1(1)"], name="n" * 300)
    with pytest.warns(UserWarning, match="File name too long"):
        recorder = Recorder(session, folder=tmp_path)
    with pytest.warns(UserWarning, match="File name too long"):
        assert recorder.write() == []


def test_without_a_warning_for_those_who_tell_it_themselves(tmp_path):
    (tmp_path / "file").write_text("no folder")
    _, step, recorder = loop(["l1(1e-2)"], every=1, folder=tmp_path / "file", warn=False)
    step()
    assert recorder.write() == []
    assert len(recorder.missing) == 4
