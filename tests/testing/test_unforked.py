"""Where processes can't be copied the exam is held in a new one, or in this one, and says so."""

import sys
import threading
from functools import partial

import pytest

from regplug import hookimpl
from regplug.testing import check_plugin, desk
from tests.testing import wrong_runs
from tests.testing.wrong_formulas import L1

ASKED = ["runs", "acts", "gradient"]


@pytest.fixture
def unforked(monkeypatch):
    """As on macOS, on Windows, or with a GPU."""
    monkeypatch.setattr(desk, "forks", lambda: False)
    yield
    desk.stop_desks()


def test_one_new_process_serves_one_plugin_after_another(unforked):
    served = []
    for plugin in ("l1(1e-3)", partial(L1, 0.01)):
        report = check_plugin(plugin, checks=ASKED)
        assert report.passed, str(report)
        assert not report.notes
        served += [one._process.pid for one in desk._idle]
    assert len(served) == 2
    assert len(set(served)) == 1


@pytest.mark.slow
def test_what_ends_the_new_process_is_one_failure_and_the_next_gets_another(unforked):
    report = check_plugin(wrong_runs.Exits, checks=ASKED)
    assert report.failed_checks() == {"runs"}, str(report)
    assert "it ends the process: SystemExit" in report.cause.message
    report = check_plugin(wrong_runs.Crashes, checks=ASKED)
    assert "by SIGSEGV" in report.cause.message
    assert check_plugin("l2(1e-3)", checks=ASKED).passed


class Here:
    """What can't be sent anywhere."""

    def __reduce__(self):
        raise TypeError("stays here")


def local(cls):
    here = Here()

    def made():
        assert here
        return cls(0.01)

    return made


@pytest.fixture
def in_process(monkeypatch, unforked):
    """Without the seconds that a process takes to start."""

    def refuses(paper, *, fork):
        raise desk._Unreadable("stays here")

    monkeypatch.setattr(desk, "Desk", refuses)


def test_what_can_not_be_sent_is_examined_here_and_the_report_says_so(in_process, capfd):
    report = check_plugin(local(L1), checks=ASKED)
    assert report.passed, str(report)
    assert "examined in this process, since the plugin can't be sent to another" in str(report)
    assert "stays here" in str(report)
    wrong = check_plugin(local(lambda strength: wrong_runs.Exits()), checks=["runs"])
    assert wrong.failed_checks() == {"runs"}
    assert "it ends the process: SystemExit: strength is too small" in wrong.cause.message
    assert capfd.readouterr().out == ""


class ExitsAtAttach(wrong_runs.Acts):
    @hookimpl
    def on_attach(self, session):
        sys.exit("no")


def test_what_leaves_at_attach_is_a_failure_here_too(in_process):
    report = check_plugin(local(lambda strength: ExitsAtAttach()), checks=["runs", "acts"])
    assert report.failed_checks() == {"runs"}, str(report)
    assert "it ends the process: SystemExit: no (at" in report.cause.message


def test_what_never_ends_is_interrupted_here_too(in_process, monkeypatch, request):
    monkeypatch.setattr(desk, "SECONDS", 2.0)
    ended = threading.Event()
    other = threading.Thread(target=ended.wait)  # younger, and so told of first
    other.start()
    request.addfinalizer(ended.set)
    report = check_plugin(local(wrong_runs.NeverConverges), checks=["runs", "acts"])
    assert report.failed_checks() == {"runs"}, str(report)
    assert "it did not come to an end within 2 s" in report.cause.message
    assert f"{wrong_runs.__file__}:" in report.cause.message
    assert {r.check for r in report.of("not judged")} == {"acts"}
