"""`regplug run` and `regplug check` with plugins of one file, on the command line and in TOML."""

from pathlib import Path

import pytest

from tests.command.forked import command
from tests.command.writing import SGD, one_line, write

MINE = """
import regplug

class Mine(regplug.Penalty):
    separable = True

    def value(self, w):
        return w.square().sum()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, MINE, "plugins/mine.py")
    # It goes elsewhere before it trains.
    (tmp_path / "away").mkdir()
    write(tmp_path, f"import os; os.chdir('away')\n{SGD}", "train.py")
    return tmp_path


def test_a_file_of_the_command_line_is_where_the_command_is_run(folder):
    ended = command("run", "-p", "./plugins/mine.py:Mine(1e-3) @ model", "train.py", cwd=folder)
    assert ended.code == 0, ended.err
    assert "mine" in ended.err


def test_a_file_of_a_toml_file_is_beside_it(folder):
    write(folder, "plugins = ['./mine.py:Mine(1e-3)', 'l1(1e-4)']", "plugins/run.toml")
    ended = command("run", "--config", "plugins/run.toml", "train.py", cwd=folder)
    assert ended.code == 0, ended.err
    assert "mine" in ended.err
    write(folder, "plugins = ['./plugins/mine.py(1)']", "plugins/run.toml")
    ended = command("run", "--config", "plugins/run.toml", "train.py", cwd=folder)
    assert ended.code == 2
    assert "there is no file" in one_line(ended)


def test_check_takes_it_too_and_help_says_that_it_is_executed(folder):
    ended = command("check", "--only", "accumulation", "plugins/mine.py:Mine(1e-3)", cwd=folder)
    assert ended.code == 0, ended.err
    assert "2 passed" in ended.out
    for name in ("run", "check"):
        words = " ".join(command(name, "--help", cwd=folder).out.split())
        assert "'./file.py:Class(1e-3)'" in words
        assert "which is executed" in words


@pytest.mark.parametrize("spec", ["l2_sp(1e-3)", "./plugins/joint.py(1e-3)"])
def test_penalties_with_a_loss_event_of_their_own_act_at_the_step(spec, folder):
    source = """
    import regplug

    class Pair(regplug.JointPenalty):
        def groups(self, session):
            yield tuple(layer.weight for layer in session.model)

        def value(self, *ws):
            return (ws[1] @ ws[0]).square().sum()
    """
    write(folder, "\n".join(line[4:] for line in source.splitlines()), "plugins/joint.py")
    ended = command("run", "-p", spec, "train.py", cwd=folder)
    assert ended.code == 0, ended.err
    assert "3 real steps" in ended.err


def test_a_trace_is_on_standard_error(folder):
    write(folder, f"import os; os.environ['REGPLUG_TRACE'] = '1'\n{SGD}", "train.py")
    ended = command("run", "-p", "./plugins/mine.py:Mine(1e-3)", "train.py", cwd=folder)
    assert ended.code == 0, ended.err
    assert sum("on_gradients mine" in line for line in ended.err.splitlines()) == 3
    assert "on_gradients" not in ended.out
