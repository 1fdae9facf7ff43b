"""`regplug run` with strengths by pattern: on the command line, and in the file."""

import pytest

from tests.command.forked import command
from tests.command.writing import SGD, write

SPEC = "l1({'0.*': 0.5, '*': linear(0, 0.1, steps=3)})"


@pytest.mark.parametrize("way", ["argument", "file"])
def test_it_takes_a_mapping(way, tmp_path):
    write(tmp_path, SGD)
    write(tmp_path, f'plugins = ["{SPEC}"]\n', "run.toml")
    given = ["-p", SPEC] if way == "argument" else ["--config", "run.toml"]
    ended = command("run", *given, "script.py", cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert "l1" in ended.err
    assert "0.5" in ended.err  # the largest
