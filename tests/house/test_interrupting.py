"""Ctrl-C in tests that were started in the background of a script, where it is ignored."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.interrupting import child

ROOT = Path(__file__).resolve().parents[2]

ASKS = f"""
import signal, sys
sys.path.insert(0, {str(ROOT)!r})
from tests.helpers.interrupting import child
assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN, "this shell does not ignore it"
waits = "print('ready', flush=True)\\nwhile True: pass"
with child([sys.executable, "-c", waits], seconds=60) as process:
    assert process.stdout.readline() == "ready\\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=50)
print("ended by", -process.returncode)
"""


def in_the_background(*command, cwd):
    """Run as ``nohup command &`` in a shell that is not interactive."""
    started = subprocess.run(
        ["sh", "-c", 'nohup "$@" >out 2>&1 & wait $!; echo $? >rc', "sh", *map(str, command)],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        timeout=200,
        check=True,
    )
    assert started.returncode == 0
    return int((cwd / "rc").read_text()), (cwd / "out").read_text()


@pytest.mark.skipif(sys.platform == "win32", reason="shells of Unix")
def test_a_child_heeds_ctrl_c_though_the_tests_ignore_it(tmp_path):
    code, out = in_the_background(sys.executable, "-c", ASKS, cwd=tmp_path)
    assert code == 0, out
    assert out.endswith(f"ended by {signal.SIGINT.value}\n")


def test_a_child_that_heeds_nothing_is_killed(tmp_path):
    deaf = "import signal\nsignal.signal(2, signal.SIG_IGN)\nprint('ready', flush=True)\n"
    started = time.monotonic()
    with child([sys.executable, "-c", f"{deaf}while True: pass"], seconds=5) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == ""  # would wait for ever
    assert process.returncode == -signal.SIGKILL
    assert time.monotonic() - started < 60


@pytest.mark.skipif(sys.platform == "win32", reason="shells of Unix")
def test_a_script_that_is_run_ignores_what_its_shell_had_it_ignore(tmp_path):
    (tmp_path / "script.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n"
        "print('goes on', signal.getsignal(signal.SIGINT) is signal.SIG_IGN)\n"
    )
    code, out = in_the_background(
        *(sys.executable, "-m", "regplug", "run", "-p", "l1(1e-3)", "script.py"), cwd=tmp_path
    )
    assert code == 0, out
    assert "goes on True\n" in out


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="shells of Unix")
def test_the_tests_of_ctrl_c_pass_in_the_background(tmp_path):
    tests = ["tests/command/test_run.py", "tests/tune/test_going_on.py"]
    code, out = in_the_background(
        *(sys.executable, "-m", "pytest", "-q", "-k", "ctrl_c", "-p", "no:cacheprovider"),
        *(f"--rootdir={ROOT}", f"--config-file={ROOT / 'pyproject.toml'}"),
        *(ROOT / test for test in tests),
        cwd=tmp_path,
    )
    assert code == 0, out
    assert "2 passed" in out
