"""The command, as it is called."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import regplug
from regplug.command.cli import main


def blocks(out):
    """Return the table's lines for each plugin, as one string, by its name."""
    heads, ruler, *lines = out.splitlines()
    assert heads.split()[:2] == ["plugin", "from"]
    assert set(ruler) == {"-", " "}
    found = {}
    for line in lines:
        if not line.startswith(" "):
            name = line.split(maxsplit=1)[0]
        found[name] = f"{found.get(name, '')} {' '.join(line.split())}"
    return found


def test_plugins_lists_what_is_installed(capsys):
    assert main(["plugins"]) == 0
    rows = blocks(capsys.readouterr().out)
    assert f" l1 regplug {regplug.__version__} The lasso penalty: λ·Σ|w|. " in rows["l1"]
    assert " l1(strength, *, where='weights', delivery='auto', name=None) " in rows["l1"]
    assert rows["l1"].endswith("loss, step, proximal; separable")
    assert rows["orthogonal"].endswith("loss, step; not separable")
    assert rows["weight_decay"].endswith("name=None)")


def test_plugins_fits_100_columns(capsys, install):
    long = f"a_{'very_' * 9}long_one"
    source = f"""
        import regplug
        class Long(regplug.Penalty):
            {'"' * 3}Does {"so " * 50} much.{'"' * 3}
            def __init__(self, strength, *, where="{"*.a" * 30}", of={{1: "*"}}, name=None): ...
            def value(self, w): return w.sum()
    """
    install(f"acme-{'long-' * 9}name", [(long, "acme_long:Long")], "1.0.post1", acme_long=source)
    install("acme-bad", [("bad", "acme_bad:Bad")], acme_bad=f"raise RuntimeError('{'no ' * 60}')")
    assert main(["plugins"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    together = "".join("".join(lines).split())
    for told in (long[:24], "*.a" * 30, "of={1:'*'}", "RuntimeError:" + "no" * 60):
        assert told in together, told
    assert sum(line.split().count("so") for line in lines) == 50


def test_plugins_as_json(capsys):
    assert main(["plugins", "--json"]) == 0
    entries = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    lasso = entries["l1"]
    assert (lasso["distribution"], lasso["version"]) == ("regplug", regplug.__version__)
    assert lasso["target"] == "regplug_builtins.l1:L1"
    assert lasso["deliveries"] == ["loss", "step", "proximal"]
    assert lasso["separable"] is True
    assert lasso["error"] is None
    assert lasso["arguments"][:2] == [
        {
            "name": "strength",
            "kind": "positional or keyword",
            "required": True,
            "default": None,
        },
        {"name": "where", "kind": "keyword-only", "required": False, "default": "'weights'"},
    ]
    assert entries["dropout"]["separable"] is None
    assert entries["dropout"]["deliveries"] == []


def test_module_is_the_same_command(tmp_path):
    script = Path(sys.executable).parent / "regplug"
    outputs = {
        subprocess.run(
            [*command, "plugins", "--json"], capture_output=True, check=True, cwd=tmp_path
        ).stdout
        for command in ([sys.executable, "-m", "regplug"], [script])
    }
    assert len(outputs) == 1
    assert b'"l1"' in outputs.pop()


def test_check_tells_by_its_status(capsys):
    assert main(["check", "l1(1e-3)", "weight_decay(0.1)", "--only", "adds,every-batch"]) == 0
    out = capsys.readouterr().out
    assert "l1(1e-3): 4 passed in " in out  # every-batch in three deliveries
    assert "weight_decay(0.1): 1 passed, 1 skipped in " in out

    # An expectation that does not come true is a failure.
    assert main(["check", "l1(1e-3)", "--only", "adds", "--expect", "adds=it is said to"]) == 1
    assert "1 failed" in capsys.readouterr().out


def test_check_as_json(capsys):
    specs = ["l1(1e-3)", "dropout(0.2)"]
    assert main(["check", *specs, "--only", "gradient, every-batch", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert {tuple(result) for result in results} == {
        ("plugin", "check", "regime", "outcome", "message", "exam")
    }
    assert {(r["plugin"], r["check"], r["outcome"]) for r in results} == {
        ("l1(1e-3)", "gradient", "passed"),
        ("l1(1e-3)", "every-batch", "passed"),
        ("dropout(0.2)", "gradient", "skipped"),
        ("dropout(0.2)", "every-batch", "passed"),
    }


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["check", "l1(1e-3"], "is no spec"),
        (["check", "no_such_plugin(1)"], "no installed plugin is called 'no_such_plugin'"),
        (["check", "l1(-1)"], "finite and not negative"),
        (["check", "l1(1e-3)", "--only", "gradients"], "there is no check 'gradients'"),
        (["check", "l1(1e-3)", "--expect", "ddp"], "--expect wants ID=REASON"),
        (["new", "Smoothness"], "is no name for a plugin"),
        (["new", "smooth-ness"], "is no name for a plugin"),
        (["new", "../smooth"], "is no name for a plugin"),
        (["new", "class"], "is no name for a plugin"),
        (["new", "l1"], "the name 'l1' is taken, by regplug"),
        (["new", "smoothness", "--into", "no/such/folder"], "there is no folder"),
    ],
)
def test_wrong_use_is_told_and_writes_nothing(arguments, told, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("regplug: error: ")
    assert told in captured.err
    assert list(tmp_path.iterdir()) == []


def test_new_overwrites_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    existing = tmp_path / "regplug-total-variation"
    existing.mkdir()
    (existing / "README.md").write_text("mine")
    assert main(["new", "total_variation"]) == 1
    assert "exists already, and nothing is overwritten" in capsys.readouterr().err
    assert [path.name for path in existing.iterdir()] == ["README.md"]
    assert (existing / "README.md").read_text() == "mine"


def test_new_writes_a_whole_package(capsys, tmp_path):
    assert main(["new", "total_variation", "--into", str(tmp_path)]) == 0
    folder = tmp_path / "regplug-total-variation"
    assert f"\n  pip install --editable '{folder}[test]'\n" in capsys.readouterr().out
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert files == [
        ".github/workflows/ci.yml",
        "README.md",
        "pyproject.toml",
        "regplug_total_variation.py",
        "tests/test_total_variation.py",
    ]
    for file in files:
        assert "$" not in (folder / file).read_text().replace("${{", "")
    module = (folder / "regplug_total_variation.py").read_text()
    assert "class TotalVariation(regplug.Penalty):" in module
    for section in ("Args:", "Raises:", "References:", ">>> "):
        assert section in module


@pytest.mark.parametrize("arguments", [[], ["plugin"], ["check"], ["new"]])
def test_arguments_that_can_not_be_read_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: regplug" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"regplug {regplug.__version__}\n"
