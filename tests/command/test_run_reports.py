"""`regplug run`: the report that it writes at the end."""

import time
from pathlib import Path

import pytest

from tests.command.forked import command
from tests.command.test_scripts import SCRIPTS


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
