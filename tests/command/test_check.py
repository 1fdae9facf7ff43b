"""`regplug check` tells how far it is, and prints nothing but JSON where JSON is asked for."""

import fcntl
import json
import os
import pty
import select
import struct
import subprocess
import sys
import termios

import pytest

NOISY = """
import atexit, ctypes, logging, os, subprocess, sys, threading, warnings
import regplug
print("imported")
atexit.register(print, "at the end")
atexit.register(os.write, 1, b"at the end of descriptor 1\\n")
logging.basicConfig(stream=sys.stdout, level="INFO")

class Noisy(regplug.Penalty):
    def value(self, w):
        print("value")
        print("value", file=sys.stderr)
        os.write(1, b"descriptor 1\\n")
        ctypes.CDLL(None).puts(b"from C")
        ctypes.CDLL(None).fflush(None)
        logging.getLogger("noisy").error("logged")
        print("past the redirection", file=sys.__stdout__, flush=True)
        logging.getLogger("noisy").info("logged to stdout")
        if not os.path.exists(SAID):
            open(SAID, "w").close()
            subprocess.run(["echo", "from another process"])
            threading.Thread(target=print, args=("from a thread",)).start()
        warnings.warn("warned")
        return w.square().sum()
"""


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """An environment in which a plugin is installed that prints wherever it can."""
    folder = tmp_path_factory.mktemp("noisy")
    said = f"SAID = {str(folder / 'said')!r}\n"
    (folder / "noisy_plugin.py").write_text(said + NOISY, "utf-8")
    info = folder / "noisy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: noisy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[regplug]\nnoisy = noisy_plugin:Noisy\n")
    return {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}


def sit(command, env):
    return subprocess.run(
        command, env=env, capture_output=True, text=True, check=False, timeout=300
    )


def test_json_stays_json_whatever_a_plugin_prints(noisy):
    command = [sys.executable, "-m", "regplug", "check", "noisy(1e-3)", "--json"]
    done = sit([*command, "--only", "runs,acts,dtype,ddp"], noisy)
    results = json.loads(done.stdout)
    assert {result["exam"] for result in results} == {2}
    assert {result["check"] for result in results} == {"runs", "acts", "dtype", "ddp"}
    assert done.returncode == 0, done.stdout
    told = [
        f"noisy(1e-3): {c} ({n} of 4)" for n, c in enumerate(("runs", "acts", "dtype", "ddp"), 1)
    ]
    assert done.stderr.splitlines() == told


IN_A_NEW_PROCESS = """
import sys
from regplug.testing import desk
from regplug.command.cli import main
if __name__ == "__main__":
    desk.forks = lambda: False
    sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_json_stays_json_where_processes_can_not_be_copied(noisy, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(IN_A_NEW_PROCESS, "utf-8")
    command = [sys.executable, str(script), "check", "noisy(1e-3)", "--json"]
    done = sit([*command, "--only", "runs,acts,ddp"], noisy)
    assert {r["outcome"] for r in json.loads(done.stdout)} == {"passed"}
    assert done.returncode == 0, done.stdout


def on_a_terminal(rows: int, columns: int) -> str:
    """Return what the command shows on a terminal of this size."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    command = [sys.executable, "-m", "regplug", "check", "l1(1e-3)", "--only", "runs,acts"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, check=False, timeout=300)
    readable, _, _ = select.select([ours], [], [], 5)  # while the other end is open
    shown = os.read(ours, 100_000).decode() if readable else ""
    os.close(theirs)
    os.close(ours)
    assert done.returncode == 0
    return shown


def test_progress_is_a_bar_on_a_terminal():
    shown = on_a_terminal(24, 80)
    assert "l1(1e-3):" in shown
    assert "1/2" in shown


def test_progress_is_lines_where_a_terminal_has_no_width():
    told = [f"l1(1e-3): {c} ({n} of 2)" for n, c in enumerate(("runs", "acts"), 1)]
    assert on_a_terminal(0, 0).splitlines() == told
