"""`regplug run` on scripts of several optimizers, with plugins that have nothing to do for some."""

import re
import shlex

import pytest
import torch

from tests.command.forked import command, plain

NETS = """
import sys, torch
from torch import nn
torch.manual_seed(0)
actor = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
critic = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.Linear(4, 1))
x = torch.randn(8, 3)
"""
# SAC: the temperature is a tensor of no module, with an optimizer of its own.
SAC = (
    NETS
    + """
log_alpha = torch.zeros(1, requires_grad=True)
actor_optimizer = torch.optim.Adam(actor.parameters(), lr=0.01)
critic_optimizer = torch.optim.Adam(critic.parameters(), lr=0.01)
alpha_optimizer = torch.optim.AdamW([log_alpha], lr=0.01)
ATTACH
for _ in range(3):
    action = actor(x)
    alpha_loss = (log_alpha.exp() * (action.detach().square().mean() + 1)).sum()
    critic_loss = (critic(torch.cat([x, action.detach()], 1)) - 1).square().mean()
    actor_loss = -critic(torch.cat([x, action], 1)).mean() + log_alpha.exp().detach().sum()
    alpha = (alpha_optimizer, alpha_loss)
    nets = ((actor_optimizer, actor_loss), (critic_optimizer, critic_loss))
    for optimizer, loss in ORDER:
        optimizer.zero_grad(); loss.backward(); optimizer.step()
weights = [*actor.parameters(), *critic.parameters(), log_alpha]
torch.save([p.detach() for p in weights], sys.argv[1])
"""
)
LAST, FIRST = "(*nets, alpha)", "(alpha, *nets)"
# CLIP: a scalar of the model itself.
CLIP = """
import sys, torch
from torch import nn
torch.manual_seed(0)
class Clip(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.text = nn.Linear(3, 4), nn.Linear(5, 4)
        self.logit_scale = nn.Parameter(torch.tensor(1.0))
    def forward(self, a, b):
        return self.logit_scale.exp() * self.image(a) @ self.text(b).T
model = Clip()
optimizer = torch.optim.SGD([p for n, p in model.named_parameters() if n != "logit_scale"], lr=0.1)
temperature = torch.optim.SGD([model.logit_scale], lr=0.1)
a, b = torch.randn(4, 3), torch.randn(4, 5)
ATTACH
for _ in range(3):
    model.zero_grad()
    nn.functional.cross_entropy(model(a, b), torch.arange(4)).backward()
    STEPS
torch.save([p.detach() for p in model.parameters()], sys.argv[1])
"""


def both(text, specs, attach, folder):
    """Run ``text`` as it is and with ``attach`` in it; return how it ended, and weights."""
    script, by_hand = folder / "script.py", folder / "by_hand.py"
    script.write_text(text.replace("ATTACH", ""))
    by_hand.write_text(text.replace("ATTACH", f"import regplug; {attach}"))
    options = [part for spec in specs for part in ("-p", spec)]
    ended = command("run", *options, script, folder / "run.pt", cwd=folder)
    hand = plain(by_hand, folder / "hand.pt", cwd=folder)
    assert hand.code == 0, hand.err
    load = [torch.load(folder / f"{name}.pt", weights_only=True) for name in ("run", "hand")]
    return ended, *load


@pytest.mark.parametrize("order", [LAST, FIRST], ids=["last", "first"])
def test_a_scalar_with_an_optimizer_of_its_own_is_passed_over_and_told(order, tmp_path):
    specs = ["l1(1e-2)", "weight_decay(0.1)"]
    attach = "; ".join(
        f"regplug.attach({name}, {name}_optimizer, {specs})" for name in ("actor", "critic")
    )
    ended, ours, theirs = both(SAC.replace("ORDER", order), specs, attach, tmp_path)
    assert ended.code == 0, ended.err
    assert all(map(torch.equal, ours, theirs))
    assert ended.err.count("3 real steps") == 2
    for spec in specs:
        told = f"{spec} selects nothing of parameters with AdamW, and was passed over there"
        assert ended.err.count(told) == 1


@pytest.mark.parametrize(
    "steps",
    ["optimizer.step(); temperature.step()", "temperature.step(); optimizer.step()"],
    ids=["last", "first"],
)
def test_a_scalar_of_the_model_itself_is_passed_over(steps, tmp_path):
    specs = ["l2(1e-2)"]
    attach = f"regplug.attach(model, optimizer, {specs})"
    ended, ours, theirs = both(CLIP.replace("STEPS", steps), specs, attach, tmp_path)
    assert ended.code == 0, ended.err
    assert all(map(torch.equal, ours, theirs))
    assert "l2(1e-2) selects nothing of model with SGD, and was passed over there" in ended.err


def test_what_does_select_something_there_acts_there(tmp_path):
    specs = ["l1(1e-2)", "l2(1e-2, where='all')"]
    attach = "; ".join(
        [
            *(f"regplug.attach({n}, {n}_optimizer, {specs})" for n in ("actor", "critic")),
            "held = nn.Module(); held._parameters['log_alpha'] = log_alpha",
            f"regplug.attach(held, alpha_optimizer, {specs[1:]})",
        ]
    )
    ended, ours, theirs = both(SAC.replace("ORDER", LAST), specs, attach, tmp_path)
    assert ended.code == 0, ended.err
    assert all(map(torch.equal, ours, theirs))
    assert ended.err.count("3 real steps") == 3
    assert ended.err.count("and was passed over there") == 1


def test_a_model_without_dropout_is_passed_over_where_another_has_some(tmp_path):
    specs = ["dropout(0.25)"]
    attach = f"regplug.attach(critic, critic_optimizer, {specs})"
    ended, ours, theirs = both(SAC.replace("ORDER", LAST), specs, attach, tmp_path)
    assert ended.code == 0, ended.err
    assert all(map(torch.equal, ours, theirs))
    assert ended.err.count("dropout(0.25) selects nothing of") == 2


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("l1(1, where='decoder.*')", "'decoder.*' matches no parameter"),
        ("l1(1) @ log_alpha", "parameters with AdamW: "),
        ("drop_path(0.1)", "drop_path"),
    ],
)
def test_a_selection_that_matches_nothing_anywhere_is_an_error_all_the_same(spec, says, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SAC.replace("ATTACH", "").replace("ORDER", LAST))
    spec = spec.replace("log_alpha", "alpha_optimizer")
    ended = command("run", "-p", spec, script, tmp_path / "run.pt", cwd=tmp_path)
    assert ended.code == 2
    assert says in ended.err
    assert not (tmp_path / "run.pt").exists()
    assert len(ended.err.splitlines()) == 1
    # The way out, to copy into a shell; not where a model was named already.
    (way,) = re.findall(r"as in (-p .*)\)$", ended.err.strip()) or [""]
    wanted = [["-p", f"{spec} @ {name}"] for name in ("actor", "critic")]
    assert (shlex.split(way) in wanted) == ("@" not in spec)


def test_an_optimizer_over_nothing_that_is_selected_is_an_error_if_it_is_alone(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import torch\nscale = torch.ones(1, requires_grad=True)\n"
        "optimizer = torch.optim.SGD([scale], lr=0.1)\n"
        "scale.sum().backward()\noptimizer.step()\n"
    )
    ended = command("run", "-p", "l1(1)", script, cwd=tmp_path)
    assert ended.code == 2
    assert "l1: " in ended.err
    assert " @ " not in ended.err


# --- scripts that die ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("import no_such_module_at_all", 1),
        ("def main():\n    raise FileNotFoundError('data/')\nmain()", 1),
        ("import argparse; argparse.ArgumentParser().parse_args(['--data'])", 2),
        ("import sys; sys.exit('no data')", 1),
        ("import torch; m = torch.nn.Linear(2, 1); m(torch.ones(1, 3))", 1),
        (
            "import torch; m = torch.nn.Linear(2, 1); o = torch.optim.SGD(m.parameters(), lr=1)\n"
            "m(torch.ones(1, 2)); raise RuntimeError('before its first step')",
            1,
        ),
    ],
    ids=["import", "file", "argparse", "exit", "model", "attached"],
)
@pytest.mark.parametrize("pattern", ["", "@net*"])
def test_a_script_that_dies_before_it_trains_has_its_own_words_alone(text, code, pattern, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(text)
    own = plain(script, cwd=tmp_path)
    ended = command("run", "-p", f"l1(1e-3){pattern}", script, cwd=tmp_path)
    assert ended.code == own.code == code
    assert ended.out == own.out
    for advice in ("attach", "torchrun", "was for no model", "no optimizer of torch"):
        assert advice not in ended.err.replace("attached", "")
    assert ended.err.splitlines()[-1:] != []
