"""`regplug run`: the script's own world, and what is refused, and when."""

import signal
import subprocess
import sys

import pytest

from tests.command.forked import command
from tests.command.writing import SGD, TRAIN, one_line, write
from tests.helpers.interrupting import child


@pytest.mark.parametrize(
    "text",
    [
        "import sys; print(sys.argv, __name__, __file__, __spec__, sys.path[0]); sys.exit(3)",
        "import sys; sys.exit('the message')",
        "import sys; sys.exit()",
        "def f():\n    raise ValueError('no')\ntry:\n    f()\nexcept ValueError:\n    f.g()\n",
        "x = (1,\n",
        "from __future__ import annotations\ndef f(a: Nowhere): pass\nprint(f.__annotations__)",
        "import sys; sys.excepthook = lambda *e: print('mine', e[0], file=sys.stderr); 1 / 0",
        "import neighbour; print(neighbour.x)",
        "assert False, 'really'",
    ],
    ids=["argv", "message", "none", "raise", "syntax", "future", "excepthook", "import", "assert"],
)
def test_exit_code_output_and_traceback_are_those_of_python(text, tmp_path):
    write(tmp_path, "x = 'found'", "sub/neighbour.py")
    write(tmp_path, text, "sub/script.py")
    arguments = ["sub/script.py", "a", "-p", "--lr=1", "--", "-m"]
    python = subprocess.run(
        [sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    ended = command("run", "-p", "l1(1e-3)", *arguments, cwd=tmp_path)
    assert ended.code == python.returncode
    assert ended.out == python.stdout
    ours = [line for line in ended.err.splitlines(True) if not line.startswith("regplug run: ")]
    assert "".join(ours) == python.stderr
    # A script that died has its traceback; to one that came to its end it is said what was missed.
    assert ("no optimizer of torch took a step" in ended.err) == (python.returncode == 0)
    assert ended.err.startswith(python.stderr)
    assert (ended.err == python.stderr) == (python.returncode != 0)


@pytest.mark.parametrize("name", ["package", "package.inner"])
def test_a_module_runs_as_with_python_m(name, tmp_path):
    show = (
        "import sys; print(sys.argv, __name__, __spec__.name, __package__, sys.path[0]); import {}"
    )
    write(tmp_path, "", "package/__init__.py")
    write(tmp_path, show.format("package.inner"), "package/__main__.py")
    write(tmp_path, show.format("package"), "package/inner.py")
    python = subprocess.run(
        [sys.executable, "-m", name, "-x"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    ended = command("run", "-p", "l1(1e-3)", "-m", name, "-x", cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert ended.out == python.stdout


def test_ctrl_c_ends_it_as_it_ends_python(tmp_path):
    # What the script leaves for its end still finds the script in place.
    last = (
        "class A: pass\natexit.register(lambda: print(type(pickle.loads(pickle.dumps(A()))) is A))"
    )
    text = f"import atexit, pickle\n{last}\n{SGD}print('ready', flush=True)\nwhile True: pass\n"
    script = write(tmp_path, text)
    with child([sys.executable, "-m", "regplug", "run", "-p", "l1(1e-3)", script]) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert out == "True\n"
    assert process.returncode == -signal.SIGINT
    assert err.count("KeyboardInterrupt") == 1
    assert "3 real steps" in err


# --- known before the script starts ----------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["-p", "l1(1e-3)", "nowhere.py"], "there is no script nowhere.py"),
        (["-p", "l1(1e-3)", "."], "is a directory"),
        (["-p", "l1(1e-3)", "-m", "no.such.module"], "there is no module no.such.module"),
        (["started.py"], "nothing to attach"),
        (["-p", "l1(-1)", "started.py"], "strength"),
        (["-p", "l1(", "started.py"], "is no spec"),
        (["-p", "el1(1)", "started.py"], "no installed plugin is called 'el1'; the nearest are"),
        (["-p", "l1(1)", "-p", "l1(2)", "started.py"], "both named 'l1'"),
        (["-p", "l1(1, delivery='loss')", "started.py"], "acts in the loss event"),
        (["-p", "l1(1)", "--report", "started.py/x", "started.py"], "--report"),
        (["-p", "l1(1)", "--report", "/proc/nowhere", "started.py"], "can't be written"),
        (["-p", "l1(1)", "--every", "0", "started.py"], "--every must be at least 1"),
        (["--config", "none.toml", "started.py"], "none.toml can't be read"),
        (["--config", "bad.toml", "started.py"], "can't be read"),
        (["--config", "odd.toml", "started.py"], "'plugin' is none of plugins, report, every"),
        (["--config", "kind.toml", "started.py"], "plugins must not be 'l1(1)'"),
    ],
)
def test_what_is_wrong_from_the_start_ends_it_there(options, says, tmp_path):
    write(tmp_path, "print('started')", "started.py")
    write(tmp_path, "plugins = [", "bad.toml")
    write(tmp_path, "plugin = ['l1(1)']", "odd.toml")
    write(tmp_path, "plugins = 'l1(1)'", "kind.toml")
    ended = command("run", *options, cwd=tmp_path)
    assert ended.code == 2
    assert ended.out == ""
    assert one_line(ended).startswith("regplug run: error: ")
    assert says in ended.err


CAUGHT = """
try:
    exec(TRAIN)
except Exception as error:
    print("caught", error)
finally:
    print("cleaned up")
"""

# --- known when it is attached ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "plugin", "says"),
    [
        ("AdamW(model.parameters())", "weight_decay(0.1)", "existing='replace'"),
        ("SGD(model.parameters(), lr=0.1)", "l1(1, where='encoder.*')", "the nearest names are"),
        ("SGD([model[0].bias], lr=0.1)", "l1(1)", "none of which this optimizer updates"),
        ("SGD(model.parameters(), lr=0.1)", "dropout(0.1)", "matches no dropout"),
        ("Rprop(model.parameters())", "l1(1, delivery='proximal')", "it knows"),
    ],
)
def test_what_can_not_be_attached_ends_it_with_one_line(optimizer, plugin, says, tmp_path):
    train = TRAIN.format(optimizer=optimizer)
    script = write(tmp_path, f"TRAIN = {train!r}\n{CAUGHT}")
    ended = command("run", "-p", plugin, script, cwd=tmp_path)
    assert ended.code == 2
    assert ended.out == "cleaned up\n"
    assert one_line(ended).startswith("regplug run: error: model with ")
    assert says in ended.err


def test_a_script_that_swallows_everything_ends_with_2_all_the_same(tmp_path):
    text = SGD.replace("    optimizer.step()", "    try: optimizer.step()\n    except: print('on')")
    ended = command(
        "run", "-p", "dropout(0.1)", write(tmp_path, text + "sys.exit(0)"), cwd=tmp_path
    )
    assert (ended.code, ended.out) == (2, "on\n" * 3)
    assert "matches no dropout" in one_line(ended)


def test_an_optimizer_that_never_steps_may_be_one_that_nothing_fits(tmp_path):
    spare = "spare = torch.optim.AdamW(model.parameters())\nfor _"
    script = write(tmp_path, SGD.replace("for _", spare))
    ended = command("run", "-p", "weight_decay(0.1)", script, cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert "Sequential with SGD, 3 real steps" in ended.err


def test_a_plugin_that_fails_at_a_step_ends_it_with_its_name(tmp_path):
    text = SGD.replace(
        "    optimizer.step()",
        "    model[0].weight.grad = torch.eye(4, 3).to_sparse()\n    optimizer.step()",
    )
    ended = command("run", "-p", "l1(1e-3)", write(tmp_path, text), cwd=tmp_path)
    assert ended.code == 2
    assert one_line(ended).startswith("regplug run: error: l1 ")
    assert "a gradient is sparse" in ended.err
