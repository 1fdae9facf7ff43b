"""Files that people and full disks leave: configurations, journals and states, told in one line."""

import json
import warnings
from pathlib import Path

import pytest
import torch

import regplug
from regplug.command.run.config import read
from regplug.errors import RegplugError, SpecError, StateError
from regplug.tune.fits import Fit, Outcome
from regplug.tune.journal import Journal

CONFIGS = {
    "every is a truth": (b"every = true", "every must not be True"),
    "every is a fraction": (b"every = 1.5", "every must not be 1.5"),
    "every is endless": (b"every = " + b"9" * 10_000, "can't be read"),
    "every is endless in hex": (b"every = -0x" + b"f" * 9_000, "can't be read"),
    "report is a date": (b"report = 2020-01-01", "report must not be datetime.date"),
    "report is empty": (b'report = ""', "report must not be ''"),
    "plugins are a table": (b"[plugins]\nl1 = 1e-4", "did you mean 'l1(0.0001)'?"),
    "plugins are a text": (b'plugins = "l1(1)"', "plugins must not be 'l1(1)'"),
    "plugins are numbers": (b"plugins = [1]", r"plugins must not be [1]"),
    "plugins are tables": (b"[[plugins]]\nl1 = 1", "plugins must not be"),
    "plugins are nested": (b'plugins = [["l1(1)"]]', "plugins must not be [['l1(1)']]"),
    "deep": (b"plugins = " + b"[" * 90_000 + b"]" * 90_000, "nested too deep"),
    "deep and cut": (b"plugins = " + b"{a = " * 9_000, "nested too deep"),
    "long key": (b"k" * 9_000 + b" = 1", "is none of plugins, report, every"),
    "another table": (b"[run]\nevery = 1", "'run' is none of plugins"),
    "bytes": (b"\xff\xfe\x00", "can't be read"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_an_odd_configuration_is_told_in_one_line(case, tmp_path):
    content, says = CONFIGS[case]
    path = tmp_path / "odd.toml"
    path.write_bytes(content)
    with pytest.raises(SpecError) as caught:
        read(path)
    assert says in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_folder_is_no_configuration(tmp_path):
    with pytest.raises(SpecError, match="can't be read"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'report = "out"\nevery = 2\n', {"report": "out", "every": 2}),
        (b"", {}),
        (b'\xef\xbb\xbfplugins = ["l1(1)"]', {"plugins": ["l1(1)"]}),
    ],
    ids=["report and every", "empty", "a mark before it"],
)
def test_a_configuration_may_say_a_part_only(content, says, tmp_path):
    path = tmp_path / "part.toml"
    path.write_bytes(content)
    assert read(path) == says


# --- journals --------------------------------------------------------------------------------

ABOUT = {"X": "1", "y": "2"}
PARAMS = [{"l1": 1.0}, {"l1": 0.5}]


def journal(path, fits=2):
    made = Journal(path, ABOUT)
    made.add(PARAMS, [Outcome(candidate=0, fold=k, score=k / 4, seconds=0.0) for k in range(fits)])
    return made


def done(path):
    found = Journal(path, ABOUT)
    fits = [
        Fit(candidate=c, fold=k, params=p, specs=()) for c, p in enumerate(PARAMS) for k in range(4)
    ]
    return [(f.candidate, f.fold, o.score) for f in fits if (o := found.outcome(f)) is not None]


@pytest.mark.parametrize("cut", ["in the header", "after the header", "with its first fit"])
def test_a_journal_that_was_cut_goes_on(cut, tmp_path):
    path = tmp_path / "search.jsonl"
    journal(path)
    header, first, _ = path.read_text().splitlines()
    kept = {"in the header": header[:9], "after the header": header}
    path.write_text(kept.get(cut, f"{header}\n{first}"))
    assert done(path) == []
    journal(path)
    assert done(path) == [(0, 0, 0.0), (0, 1, 0.25)]
    assert len(path.read_text().splitlines()) == 3


@pytest.mark.parametrize(
    "line",
    [
        *("5", "null", "[]", '"text"', "{}", '{"params": 3, "weights": null}', "[" * 90_000),
        '{"params": {"l1": "x"}, "fold": 0, "score": 1, "seconds": 1, "weights": null}',
        '{"params": {"l1": 1}, "fold": [0], "score": 1, "seconds": 1, "weights": null}',
        '{"params": {"l1": 1}, "fold": 0, "score": "1", "seconds": 1, "weights": null}',
        '{"params": {"l1": 1}, "fold": 0, "score": 1, "seconds": 1, "weights": "no"}',
        '{"params": {"l1": 1}, "fold": 0, "score": 1, "seconds": 1, "weights": [[1], [1, 2]]}',
        '{"params": {"l1": 1}, "fold": 0, "score": 1, "seconds": 1, "weights": null, "more": 1}',
    ],
    ids=lambda line: line[:70],
)
@pytest.mark.parametrize("last", [True, False])
def test_a_line_that_is_no_entry_is_named(line, last, tmp_path):
    path = tmp_path / "search.jsonl"
    journal(path)
    lines = path.read_text().splitlines()
    lines.insert(3 if last else 1, line)
    path.write_text("\n".join(lines) + "\n")
    before = path.read_text()
    with pytest.raises(StateError, match=f"line {4 if last else 2} is damaged; take it out"):
        Journal(path, ABOUT)
    assert path.read_text() == before


@pytest.mark.parametrize("content", ["5", "[]", "{}", "null", "[" * 90_000, "text"])
def test_another_file_is_no_journal(content, tmp_path):
    path = tmp_path / "search.jsonl"
    path.write_text(content)
    with pytest.raises(StateError, match="is no file of an earlier search"):
        Journal(path, ABOUT)
    assert path.read_text() == content


def test_a_folder_is_no_journal(tmp_path):
    with pytest.raises(StateError, match="can't be used: Is a directory"):
        Journal(tmp_path, ABOUT)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full to be a full disk")
def test_a_full_disk_loses_nothing_of_a_search(tmp_path, monkeypatch):
    path = tmp_path / "search.jsonl"
    made = journal(path, fits=1)
    real = Path.open

    def full(own, mode="r", *args, **kwargs):
        return real(Path("/dev/full") if "a" in mode else own, mode, *args, **kwargs)

    later = [Outcome(candidate=1, fold=k, score=0.5, seconds=0.0) for k in range(3)]
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", full)
        with pytest.warns(UserWarning, match="No space left on device"):
            made.add(PARAMS, later[:1])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            made.add(PARAMS, later[1:2])  # said once
    assert done(path) == [(0, 0, 0.0)]
    made.add(PARAMS, later[2:])  # there is room again
    assert done(path) == [(0, 0, 0.0), (1, 0, 0.5), (1, 1, 0.5), (1, 2, 0.5)]
    assert all(json.loads(line) for line in path.read_text().splitlines())


# --- states ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "plugins",
    [{1: {}, "l1": {}}, {None: {}}, {("l1",): {}, 2: {}, "x": {}}, {}, {b"l1": {}, "l1": {}}],
    ids=repr,
)
def test_a_state_of_odd_plugins_is_refused_as_any_other(plugins):
    session = regplug.attach(torch.nn.Linear(2, 1), plugins=["l1(1)"])
    with pytest.raises(StateError, match="the saved state is of the plugins"):
        session.load_state_dict({"steps": 3, "plugins": plugins})
    assert session.steps == 0
    with pytest.raises(RegplugError):
        session.load_state_dict({"steps": True, "plugins": 3})
