"""A search that is stopped, and goes on; the file that it keeps, and the progress that it tells."""

import functools
import json
import re
import signal
import sys
import time

import numpy as np
import pytest

from regplug.errors import StateError
from regplug.tune import StrengthCV
from tests.helpers.interrupting import child
from tests.tune.rows import Search, X, Y, diverging, ridge


class Stopping:
    """Ridge that is stopped by Ctrl-C at some call."""

    def __init__(self, at=None):
        self.calls, self.at = 0, at

    def __call__(self, X, y, plugins):
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return ridge(X, y, plugins)


def test_a_stopped_search_keeps_what_is_done_and_goes_on(tmp_path):
    file = tmp_path / "search.jsonl"
    grid = {"l2": [1.0, 0.1, 0.01]}
    whole = Search(ridge, grid, cv=4).fit(X, Y)
    stopped = Search(Stopping(at=6), grid, cv=4, resume=file)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(X, Y)
    kept = np.array([stopped.cv_results_[f"split{k}_test_score"] for k in range(4)]).T
    assert np.isfinite(kept).sum() == 5
    np.testing.assert_array_equal(
        kept[0], [whole.cv_results_[f"split{k}_test_score"][0] for k in range(4)]
    )

    rest = Stopping()
    search = Search(rest, grid, cv=4, resume=file).fit(X, Y)
    assert rest.calls == 12 - 5 + 1
    for name in ("mean_test_score", "se_test_score", "rank_test_score"):
        np.testing.assert_array_equal(search.cv_results_[name], whole.cv_results_[name])

    more = Stopping()  # the grid may grow
    Search(more, {"l2": [1.0, 0.1, 0.01, 0.001]}, cv=4, resume=file).fit(X, Y)
    assert more.calls == 4 + 1


STOPPABLE = """
import os, sys, time
import numpy as np
from regplug.tune import StrengthCV

def train(X, y, plugins):
    time.sleep(0.05)
    return lambda X: X[:, 0]

rows = np.arange(40.0)[:, None]
search = StrengthCV(train, {"l2": list(range(40))}, cv=5, n_jobs=2, resume=sys.argv[1])
try:
    search.fit(rows, rows[:, 0])
except KeyboardInterrupt:
    scores = [search.cv_results_[f"split{k}_test_score"] for k in range(5)]
    print("kept", int(np.isfinite(scores).sum()))
"""


def test_ctrl_c_stops_workers_cleanly(tmp_path):
    file = tmp_path / "search.jsonl"
    with child([sys.executable, "-c", STOPPABLE, file]) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (
            file.exists() and file.read_text().count("\n") > 12
        ):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out.startswith("kept ")
    assert "Traceback" not in err
    assert 12 < file.read_text().count("\n") < 200


def test_a_file_cut_off_in_the_middle_of_a_line_goes_on(tmp_path):
    file = tmp_path / "search.jsonl"
    grid = {"l2": [1.0, 0.1]}
    whole = Search(ridge, grid, cv=3, resume=file).fit(X, Y)
    file.write_text(file.read_text()[:-20])
    search = Search(ridge, grid, cv=3, resume=file).fit(X, Y)
    np.testing.assert_array_equal(
        search.cv_results_["mean_test_score"], whole.cv_results_["mean_test_score"]
    )
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == 1 + 6


def test_a_file_of_another_search_is_refused_and_names_the_difference(tmp_path):
    file = tmp_path / "search.jsonl"
    resumed = functools.partial(Search, ridge, {"l2": [1.0]}, resume=file)
    resumed(cv=3).fit(X, Y)
    with pytest.raises(StateError, match="folds differ"):
        resumed(cv=4).fit(X, Y)
    with pytest.raises(StateError, match="y differ"):
        resumed(cv=3).fit(X, Y + 1)
    with pytest.raises(StateError, match="scoring differ"):
        resumed(cv=3, scoring="r2").fit(X, Y)
    (tmp_path / "other").write_text("hello\n")
    with pytest.raises(StateError, match="no file of an earlier search"):
        Search(ridge, {"l2": [1.0]}, resume=tmp_path / "other").fit(X, Y)
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], "{}", *lines[1:]]) + "\n")
    with pytest.raises(StateError, match="line 2 is damaged"):
        resumed(cv=3).fit(X, Y)


def test_nan_scores_are_kept_in_the_file_too(tmp_path):
    file = tmp_path / "search.jsonl"
    for _ in range(2):
        with pytest.warns(UserWarning, match="NaN scores"):
            Search(diverging, {"l2": [1.0, 0.1]}, cv=3, resume=file).fit(X, Y)


def test_the_progress_is_told(capsys):
    StrengthCV(ridge, {"l2": [1.0, 0.1]}, cv=5).fit(X, Y)
    told = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(told) == 12  # the beginning, each fit, the end
    assert re.fullmatch(r"strengths █+ 10/10 fits, 00:00 \+ 00:00, best fold -\d.*", told[-1])
    StrengthCV(ridge, {"l2": [1.0, 0.1]}, cv=5, progress=False).fit(X, Y)
    assert capsys.readouterr().err == ""


def test_the_progress_rewrites_its_line_on_a_terminal():
    import io

    from regplug.tune.progress import Progress

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    bar = Progress(4, 1, stream=stream)
    bar.advance(3, -0.5)
    bar.close()
    bar.close()
    assert stream.getvalue().startswith("\rstrengths")
    assert stream.getvalue().endswith("4/4 fits, 00:00 + 00:00, best fold -0.5\n")
    assert stream.getvalue().count("\n") == 1


def test_the_progress_of_many_fits_is_a_few_lines_in_a_log():
    import io

    from regplug.tune.progress import Progress

    stream = io.StringIO()
    bar = Progress(1000, stream=stream)
    for _ in range(1000):
        bar.advance(1, -0.5)
    bar.close()
    assert len(stream.getvalue().strip().split("\r")) == 12
    assert stream.getvalue().endswith(" 1000/1000 fits, 00:00 + 00:00, best fold -0.5\n")
