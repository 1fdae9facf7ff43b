"""`regplug run`: the script's own world, what is refused and when, and what is told at the end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.command.forked import command
from tests.command.test_scripts import SCRIPTS, load
from tests.helpers.interrupting import child

TRAIN = """
import sys, torch
model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
optimizer = torch.optim.{optimizer}
for _ in range(3):
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
"""
SGD = TRAIN.format(optimizer="SGD(model.parameters(), lr=0.1)")


def write(folder: Path, text: str, name: str = "script.py") -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def one_line(ended) -> str:
    """Return the only line on standard error."""
    (line,) = ended.err.splitlines()
    return line


# --- the script's own world ------------------------------------------------------------------


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


# --- known when it is attached ---------------------------------------------------------------

CAUGHT = """
try:
    exec(TRAIN)
except Exception as error:
    print("caught", error)
finally:
    print("cleaned up")
"""


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


# --- which model, and from when on -----------------------------------------------------------


def run_session(text, plugins, tmp_path):
    """Run a script that shows dropout rates and names as it goes; return its lines."""
    options = [part for spec in plugins for part in ("-p", spec)]
    ended = command("run", *options, write(tmp_path, text), cwd=tmp_path)
    assert ended.code == 0, ended.err
    return ended


def test_rates_hold_from_the_first_forward_once_there_is_an_optimizer(tmp_path):
    text = """
import torch
from torch import nn
model = nn.Sequential(nn.LazyLinear(4), nn.Dropout(0.5), nn.Linear(4, 1))
x = torch.ones(2, 3)
model(x)                                     # finds out the shapes
print(model[1].p)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
print(model[1].p)
for _ in range(2):
    out = model(x)
    print(model[1].p)
    out.sum().backward()
    optimizer.step()
print(len(nn.modules.module._global_forward_pre_hooks))
"""
    ended = run_session(text, ["dropout(linear(0.2, 0.0, steps=2))"], tmp_path)
    # Before there is an optimizer, nothing; then from the next forward on; and no hook is left.
    assert ended.out.split() == ["0.5", "0.5", "0.2", "0.1", "0"]


def test_a_later_model_gets_its_rates_in_time_too(tmp_path):
    text = """
import torch
from torch import nn
for fold in range(3):
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        out = model(torch.ones(2, 3))
        print(model[1].p)
        out.sum().backward()
        optimizer.step()
"""
    ended = run_session(text, ["dropout(linear(0.2, 0.0, steps=2))"], tmp_path)
    assert ended.out.split() == ["0.2", "0.1"] * 3


def test_models_that_are_done_with_may_go(tmp_path):
    text = """
import gc, weakref, torch
gone = []
for fold in range(4):
    model = torch.nn.Linear(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
    gone.append(weakref.ref(model))
gc.collect()
print([ref() is None for ref in gone])
"""
    ended = run_session(text, ["l1(1)"], tmp_path)
    assert ended.out == "[True, True, True, False]\n"
    assert ended.err.count("Linear with SGD, 3 real steps") == 4
    assert ended.err.count("  l1 ") == 4  # with value and zeros, though the weights are gone


@pytest.mark.parametrize(
    ("build", "pattern"),
    [
        ("model = Net(); own = model.parameters(); call = model", "fc.*"),
        ("model = Net(); own = model.fc.parameters(); call = model", "fc.*"),
        ("model = Net(); own = model.parameters();"
         "call = lambda x: model.fc(model.body(x))", "fc.*"),
        ("model = Net(); two = Two(model, Net()); own = model.parameters(); call = model", "fc.*"),
        ("two = Two(Net(), Net()); own = two.parameters(); call = two", "a.fc.*"),
        ("whole = Two(Net(), Net()); own = whole.parameters();"
         "call = lambda x: whole.a(x) + whole.b(x)", "a.fc.*"),
        ("a, b = Net(), Net(); own = [*a.parameters(), *b.parameters()];"
         "call = lambda x: a(x) + b(x)", "a.fc.*"),
        ("a, scale = Net(), torch.nn.Parameter(torch.ones(1, 1)); own = [*a.parameters(), scale];"
         "call = lambda x: scale * a(x)", "a.fc.*"),
        ("a, scale = Net(), torch.nn.Parameter(torch.ones(1, 1)); own = [*a.parameters(), scale];"
         "call = lambda x: scale * a(x)", "param_4"),
        ("model = Net(); own = model.parameters();"
         "call = lambda x: torch.nn.utils.parametrize.torch.func.functional_call("
         "model, dict(model.named_parameters()), x)", "fc.*"),
        ("model = torch.nn.DataParallel(Net()); own = model.parameters(); call = model", "fc.*"),
        ("model = Net(); own = model.parameters(); call = torch.jit.trace(model, x)", "fc.*"),
    ],
    ids=["whole", "head", "parts", "one of two", "two", "two apart", "two roots", "and a tensor",
         "the tensor", "functional", "wrapped", "traced"],
)  # fmt: skip
def test_parameters_have_the_names_of_the_module_that_is_trained(build, pattern, tmp_path):
    text = f"""
import warnings; warnings.simplefilter("ignore")
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.fc = torch.nn.Linear(3, 4), torch.nn.Linear(4, 1)
    def forward(self, x):
        return self.fc(self.body(x))
class Two(torch.nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.a, self.b = a, b
    def forward(self, x):
        return self.a(x) + self.b(x)
x = torch.ones(2, 3)
{build}
optimizer = torch.optim.SGD(own, lr=0.1)
for _ in range(2):
    call(x).sum().backward()
    optimizer.step()
"""
    ended = run_session(text, [f"l1(1e-3, where=['{pattern}', '!*.bias'])"], tmp_path)
    assert "2 real steps" in ended.err
    assert " 1  " in next(line for line in ended.err.splitlines() if "  l1 " in line)


WRAPPER = """
import torch
class Outer(torch.optim.Optimizer):
    def __init__(self, inner):
        super().__init__(inner.param_groups, inner.defaults)
        self.base_optimizer = inner
        self.param_groups = inner.param_groups
    def step(self, closure=None):
        self.base_optimizer.step()
class Local(torch.optim.SGD):                # works on a part, for another
    pass
class Zero(torch.optim.Optimizer):
    def __init__(self, params, lr):
        super().__init__(params, dict(lr=lr))
        self.optim = Local(self.param_groups[0]["params"][:1], lr=lr)
    def step(self, closure=None):
        self.optim.step()
model = torch.nn.Linear(2, 2)
optimizer = {make}
torch.nn.init.ones_(model.weight)
for _ in range(2):
    optimizer.zero_grad()
    (0 * model(torch.ones(1, 2))).sum().backward()
    {step}
print(round(model.weight[0, 0].item(), 6))
"""


@pytest.mark.parametrize(
    ("make", "step", "by"),
    [
        ("Outer(torch.optim.SGD(model.parameters(), lr=0.1))", "optimizer.step()", "SGD"),
        ("Outer(torch.optim.SGD(model.parameters(), lr=0.1))",
         "optimizer.base_optimizer.step()", "SGD"),
        ("Zero(model.parameters(), lr=0.1)", "optimizer.step()", "Zero"),
    ],
    ids=["outer", "inner", "part"],
)  # fmt: skip
def test_an_optimizer_within_another_is_not_regularized_twice(make, step, by, tmp_path):
    ended = run_session(WRAPPER.format(make=make, step=step), ["l1(0.5)"], tmp_path)
    assert float(ended.out) == 1 - 2 * 0.1 * 0.5
    assert f"Linear with {by}, 2 real steps" in ended.err
    assert ended.err.count("real steps") == 1


# --- launchers -------------------------------------------------------------------------------


def launched(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "regplug")


@pytest.mark.parametrize(
    ("script", "plugin", "more"),
    [
        ("ddp.py", "elastic_net(1e-2, 1e-2, delivery='proximal')", []),
        ("sharded.py", "l1(1e-2, delivery='proximal')", ["keep"]),
    ],
)
def test_two_processes_give_the_weights_of_one(script, plugin, more, tmp_path):
    script = SCRIPTS / script
    alone = command("run", "-p", plugin, script, tmp_path / "one.pt", cwd=tmp_path)
    assert alone.code == 0, alone.err
    report = ("--report", tmp_path / "report")
    two = launched(
        *TORCHRUN, "run", "-p", plugin, *report, script, tmp_path / "two.pt", *more, cwd=tmp_path
    )
    assert two.returncode == 0, two.stderr
    for one, other in zip(load(tmp_path / "one.pt"), load(tmp_path / "two.pt"), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    # One rank tells, and it tells what one process would: value and zeros of the whole model.
    ours = [line for line in alone.err.splitlines() if "real steps" in line or "  proximal" in line]
    assert len(ours) == 2
    told = [line for line in two.stderr.splitlines() if line.startswith("regplug run: ")]
    assert [line for line in told if "real steps" in line or "  proximal" in line] == ours
    assert sum(path.suffix == ".json" for path in (tmp_path / "report").iterdir()) == 1


def test_accelerate_launch(tmp_path):
    script = SCRIPTS / "accelerated.py"
    alone = command("run", "-p", "l1(1e-2)", script, tmp_path / "one.pt", cwd=tmp_path)
    assert alone.code == 0, alone.err
    both = launched(
        *("accelerate.commands.launch", "--cpu", "--num_processes", 1, "--num_machines", 1),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "-m", "regplug", "run"),
        *("-p", "l1(1e-2)", script, tmp_path / "two.pt"),
        cwd=tmp_path,
    )
    assert both.returncode == 0, both.stderr
    assert "6 real steps" in both.stderr
    assert all(map(torch.equal, load(tmp_path / "one.pt"), load(tmp_path / "two.pt")))


# --- the report ------------------------------------------------------------------------------


def test_a_report_of_each_model_is_written(tmp_path):
    ended = command(
        *("run", "-p", "l1(1e-2)", "--report", "out/deep", "--every", "2", SCRIPTS / "gan.py"),
        cwd=tmp_path,
    )
    assert ended.code == 0, ended.err
    assert "regplug run: report: out/deep/" in ended.err
    names = {path.name for path in (tmp_path / "out" / "deep").iterdir()}
    endings = ("csv", "layers.csv", "json", "png")
    assert names == {f"{model}.{ending}" for model in ("netD", "netG") for ending in endings}
    rows = (tmp_path / "out" / "deep" / "netD.csv").read_text().splitlines()
    assert [row.partition(",")[0] for row in rows] == ["step", "0", "2", "4", "6"]


def test_a_full_disk_does_not_end_the_training(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full to be a full disk")
    folder = tmp_path / "out"
    folder.mkdir()
    for name in ("netD.csv", "netD.png", "netD.json"):
        (folder / name).symlink_to("/dev/full")
    arguments = ("run", "-p", "l1(1e-2)", "--report", folder, SCRIPTS / "gan.py", "weights.pt")
    ended = command(*arguments, cwd=tmp_path)
    assert ended.code == 0
    assert (tmp_path / "weights.pt").exists()
    assert "missing in the report: netD.csv from step 0 on (No space left on device)" in ended.err
    assert "missing in the report: netD.png (No space left on device)" in ended.err
    assert (folder / "netG.png").read_bytes().startswith(b"\x89PNG")


def test_the_example_script_gets_sparse_without_losing_what_it_reads(tmp_path):
    example = Path(__file__).parents[2] / "examples" / "plain_script.py"
    spec = "l1(1e-3, delivery='proximal')"
    started = time.monotonic()
    ended = command("run", "-p", spec, example, "--epochs", "10", cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert time.monotonic() - started < 60
    *_, last = ended.out.split()
    assert float(last) > 0.9
    (row,) = [line for line in ended.err.splitlines() if "  proximal" in line]
    assert float(row.split()[-2]) > 30
