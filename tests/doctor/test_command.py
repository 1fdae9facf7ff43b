"""The command itself: what is known before the script starts, and how it ends."""

import signal
import subprocess
import sys

import pytest

from tests.command.forked import command
from tests.command.writing import SGD, one_line, write
from tests.helpers.interrupting import child


def test_help_imports_no_torch():
    text = (
        "import sys\nfrom regplug.command.cli import main\n"
        "try: main([sys.argv[1], '--help'])\nexcept SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    for name in ("doctor", "run"):
        ended = subprocess.run(
            [sys.executable, "-c", text, name], capture_output=True, text=True, check=True
        )
        assert "SCRIPT" in ended.stdout


def test_ctrl_c_ends_it_as_it_ends_python(tmp_path):
    last = "import atexit; atexit.register(print, 'last')\n"
    script = write(tmp_path, f"{last}{SGD}print('ready', flush=True)\nwhile True: pass\n")
    arguments = ["-m", "regplug", "doctor", "--json", tmp_path / "out.json", script]
    with child([sys.executable, *arguments]) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert out == "last\n"
    assert process.returncode == -signal.SIGINT
    # One traceback, of the script alone, and then what was found until then.
    assert err.count("KeyboardInterrupt") == err.count("Traceback") == 1
    assert err.count("File ") == err.count(str(script)) == 1
    assert "3 real steps" in err
    assert (tmp_path / "out.json").is_file()


@pytest.mark.parametrize("name", ["no/where.json", ".", "x" * 300, "script.py/out.json", "\0"])
def test_a_file_that_cant_be_written_is_told_of_before_the_run(name, tmp_path):
    script = write(tmp_path, "print('ran')")
    ended = command("doctor", "--json", name, script, cwd=tmp_path)
    assert (ended.code, ended.out) == (2, "")
    assert one_line(ended).startswith(f"regplug doctor: error: --json {name} can't be written: ")
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".json"] == []


def test_a_file_that_is_there_is_kept_until_the_end(tmp_path):
    (tmp_path / "out.json").write_text("of the last run")
    script = write(tmp_path, f"{SGD}print(open('out.json').read())")
    ended = command("doctor", "--json", "out.json", script, cwd=tmp_path)
    assert (ended.code, ended.out) == (0, "of the last run\n")
    assert '"version": 1' in (tmp_path / "out.json").read_text("utf-8")


def test_a_folder_that_is_gone_at_the_end_costs_no_report(tmp_path):
    (tmp_path / "there").mkdir()
    script = write(tmp_path, f"import shutil; shutil.rmtree('there')\n{SGD}")
    ended = command("doctor", "--json", "there/out.json", script, cwd=tmp_path)
    assert ended.code == 0
    assert "3 real steps" in ended.err
    assert "can't be written: No such file" in ended.err
    assert "Traceback" not in ended.err
