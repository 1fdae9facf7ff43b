"""Scripts that know nothing of regplug, run unedited: the same weights as if they had attached.

The oracle is each script with an ``attach`` written into it where its author would have put it.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from tests.command.forked import command, plain

SCRIPTS = Path(__file__).parent / "scripts"


@dataclass(frozen=True)
class Case:
    script: str
    plugins: list[str]
    edits: dict[str, str]  # a line -> what is written before it
    steps: list[int]
    arguments: list[str] = field(default_factory=list)


ATTACH = "import regplug; regplug.attach({}, {}, PLUGINS)"
DROPOUT = "dropout(linear(0.6, 0.1, steps=6))"
CASES = [
    Case(
        "image_classifier.py",
        ["l1(1e-3, delivery='proximal')", "weight_decay(0.1)", DROPOUT],
        {"test(model, device, test_loader)": ATTACH.format("model", "optimizer")},
        [8],
        ["--save-model"],
    ),
    Case(
        "gan.py",
        ["l2(1e-2)", "weight_decay(0.05, where='all')"],
        {
            "for step in range(steps):": ATTACH.format("netD", "optimizerD")
            + "; "
            + ATTACH.format("netG", "optimizerG")
        },
        [6, 6],
    ),
    Case(
        "lbfgs.py",
        ["l2(1e-3)", "l1(1e-4)"],
        {"def closure():": ATTACH.format("model", "optimizer")},
        [4],
    ),
    Case(
        "mixed_precision.py",
        ["l1(1e-2)", DROPOUT],
        {"scaler = torch.amp": ATTACH.format("net", "opt")},
        [2],
        ["--output"],
    ),
    Case(
        "ddp.py",
        ["elastic_net(1e-3, 1e-2, delivery='proximal')"],
        {"trainer.train(4)": ATTACH.format("model", "trainer.optimizer")},
        [8],
    ),
    Case(
        "warmup.py",
        ["weight_decay(0.5)", "l1(warmup(1e-3, steps=5))", DROPOUT],
        {"scheduler = LambdaLR": ATTACH.format("lm", "optimizer")},
        [12],
    ),
    Case(
        "factory.py",
        ["l1(1e-3, where='backbone.*')", DROPOUT],
        {"for _ in range(epochs):": ATTACH.format("parts", "optimizer")},
        [9],
    ),
    Case(
        "workers.py", ["l2(1e-2)"], {"for _ in range(2):": ATTACH.format("model", "optimizer")}, [6]
    ),
    Case(
        "autoencoder.py",
        ["l1(1e-2, where=['encoder.*', 'decoder.*'])", DROPOUT],
        {
            "x = torch.randn": ATTACH.format(
                "nn.ModuleDict(dict(encoder=encoder, decoder=decoder))", "optimizer"
            )
        },
        [6],
    ),
    Case(
        "folds.py",
        ["l1(1e-2, delivery='proximal')", DROPOUT],
        {"for _ in range(5):": ATTACH.format("model", "optimizer")},
        [5, 5, 5],
    ),
    *(
        Case(
            "compiled.py",
            ["l2(1e-2)", DROPOUT],
            {"def loss_fn": ATTACH.format("model", "optimizer")},
            [4],
            [how],
        )
        for how in ("wrapped", "in place", "function")
    ),
    Case(
        "accelerated.py",
        ["weight_decay(0.2)", "l1(1e-3)"],
        {"for _ in range(2):": ATTACH.format("model", "optimizer")},
        [6],
    ),
    Case(
        "bare_tensors.py",
        ["l1(0.1, where='param_0')", "l2(0.1, where='param_1', name='other')"],
        {
            "for _ in range(10):": "held = torch.nn.Module(); "
            "held._parameters.update(param_0=weight, param_1=bias); "
            + ATTACH.format("held", "optimizer")
        },
        [10],
    ),
]

# Made by the frameworks themselves, where no line of the script comes between.
TRAINERS = [
    Case(
        "with_lightning.py",
        ["l1(0.1, delivery='proximal')", DROPOUT],
        {"return optimizer": ATTACH.format("self", "optimizer")},
        [8],
    ),
    Case(
        "with_trainer.py",
        ["l1(0.1)", DROPOUT],
        {
            "trainer.train()": "from regplug.integrations.transformers import RegplugCallback; "
            "trainer.add_callback(RegplugCallback(PLUGINS))"
        },
        [4],
    ),
]


def attached(case: Case, folder: Path) -> Path:
    """Write the script with its edits into ``folder``."""
    lines = [f"PLUGINS = {case.plugins!r}"]
    left = dict(case.edits)
    for line in (SCRIPTS / case.script).read_text().splitlines():
        indent = line[: len(line) - len(line.lstrip())]
        here = [start for start in left if line.strip().startswith(start)]
        lines += [*(indent + left.pop(start) for start in here), line]
    assert not left, f"{case.script} has no line {list(left)}"
    path = folder / case.script
    path.write_text("\n".join(lines) + "\n")
    return path


def leaves(saved):
    if isinstance(saved, torch.Tensor):
        return [saved]
    parts = saved.values() if isinstance(saved, dict) else saved
    return [leaf for part in parts for leaf in leaves(part)]


def load(path):
    return leaves(torch.load(path, weights_only=True))


@pytest.mark.parametrize(
    "case",
    [*CASES, *(pytest.param(case, marks=pytest.mark.frameworks) for case in TRAINERS)],
    ids=lambda case: " ".join([case.script, *case.arguments]),
)
def test_an_unedited_script_trains_as_one_that_attached(case, tmp_path):
    options = [part for spec in case.plugins for part in ("-p", spec)]
    ended = command(
        "run", *options, SCRIPTS / case.script, *case.arguments, tmp_path / "run.pt", cwd=tmp_path
    )
    assert ended.code == 0, ended.err
    by_hand = plain(attached(case, tmp_path), *case.arguments, tmp_path / "hand.pt", cwd=tmp_path)
    assert by_hand.code == 0, by_hand.err
    assert [int(n) for n in re.findall(r", (\d+) real steps", ended.err)] == case.steps
    ours, theirs = load(tmp_path / "run.pt"), load(tmp_path / "hand.pt")
    assert len(ours) == len(theirs) > 1
    assert all(map(torch.equal, ours, theirs))
    # What the script itself prints is the same too.
    if case not in TRAINERS:
        assert ended.out == by_hand.out
    assert "regplug" not in ended.out


def test_a_loop_without_an_optimizer_is_told_that_nothing_acted(tmp_path):
    script = SCRIPTS / "by_hand.py"
    ended = command("run", "-p", "l1(1e-3)", script, tmp_path / "run.pt", cwd=tmp_path)
    assert ended.code == 0
    assert "no optimizer of torch took a step" in ended.err
    plain(script, tmp_path / "plain.pt", cwd=tmp_path)
    assert all(map(torch.equal, load(tmp_path / "run.pt"), load(tmp_path / "plain.pt")))


def test_a_pattern_says_which_model_of_a_gan_a_plugin_is_for(tmp_path):
    case = Case(
        "gan.py",
        [],
        {
            "for step in range(steps):": "import regplug; "
            "regplug.attach(netG, optimizerG, ['l1(1e-2)']); "
            "regplug.attach(netD, optimizerD, ['l2(1e-2)', 'weight_decay(0.1)'])"
        },
        [],
    )
    plain(attached(case, tmp_path), tmp_path / "hand.pt", cwd=tmp_path)
    # By variable, class of the model, or variable of the optimizer; in any case.
    (tmp_path / "gan.toml").write_text('plugins = ["l1(1e-2)@NETG", "l2(1e-2) @ disc*"]\n')
    arguments = ("--config", tmp_path / "gan.toml", "-p", "weight_decay(0.1)@optimizerD")
    ended = command("run", *arguments, SCRIPTS / "gan.py", tmp_path / "run.pt", cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert all(map(torch.equal, load(tmp_path / "run.pt"), load(tmp_path / "hand.pt")))
    assert "netG: Generator with Adam, 6 real steps" in ended.err
    assert "netD: Discriminator with Adam, 6 real steps" in ended.err


def test_a_pattern_that_fits_no_model_is_told_and_so_is_a_model_without_a_plugin(tmp_path):
    ended = command(
        *("run", "-p", "l1(1e-2)@netG", "-p", "l2(1e-2)@netQ", SCRIPTS / "gan.py"), cwd=tmp_path
    )
    assert ended.code == 0
    assert "l2(1e-2) was for no model: 'netQ' matches none of their names" in ended.err
    assert "no plugin was for netD with Adam" in ended.err
