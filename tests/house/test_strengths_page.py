"""docs/strengths.md is true: its code prints what it says, and its recipes do what they say."""

import contextlib
import io
import re
from pathlib import Path

import pytest
import torch

import regplug
from regplug.discovery import catalog
from regplug.tune.grid import Grid
from regplug_builtins._scale import SCALES

PAGE = (Path(__file__).parents[2] / "docs" / "strengths.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def told():
    """Return what the blocks of code left, and what each printed with what it says it prints."""
    names, pairs = {"__name__": "page"}, []
    torch.manual_seed(0)
    for code, said in re.findall(
        r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```$)?", PAGE, re.DOTALL | re.MULTILINE
    ):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "docs/strengths.md", "exec"), names)
        pairs.append((printed.getvalue(), said))
    return names, pairs


def test_its_code_prints_what_it_says(told):
    _, pairs = told
    assert len(pairs) >= 5
    for printed, said in pairs:
        assert printed == said


def test_the_recipe_for_lora_is_decay_of_the_whole_to_the_start(told):
    names, _ = told
    adapted, lora = names["adapted"], names["lora"]
    covered = {plugin.name: plugin.covered(lora) for plugin in lora.plugins}
    assert covered == {
        "weight_decay": ["0.lora_B.weight", "2.lora_B.weight"],
        "decay_to_start": ["0.lora_A.weight", "2.lora_A.weight"],
    }
    layers = list(adapted[::2])
    pairs = [(each.lora_A.weight, each.lora_B.weight) for each in layers]
    before = [(a.detach().clone(), b.detach().clone()) for a, b in pairs]
    begun = [lora.plugins[1].companions(each.lora_A.weight)[0] for each in layers]
    for group in lora.optimizer.param_groups:
        group["betas"] = (0.0, 0.999)  # its own update is 0 for a gradient of 0
    for w in adapted.parameters():
        if w.requires_grad:
            w.grad = torch.zeros_like(w)
    lora.optimizer.step()
    for layer, (a, b), start in zip(layers, before, begun, strict=True):
        torch.testing.assert_close(layer.lora_B.weight.detach(), b * (1 - 1e-2 * 0.1))
        pulled = a - 1e-2 * 0.1 * (a - start)
        torch.testing.assert_close(layer.lora_A.weight.detach(), pulled)
        assert not torch.equal(a, start)
    lora.detach()


def test_it_names_every_convention():
    for scale in SCALES:
        assert f'| `"{scale}"` |' in PAGE


def test_every_plugin_of_a_strength_is_in_its_table():
    table = PAGE.partition("| what | by pattern |")[2].partition("`l2` is left")[0]
    others = [
        name
        for name in catalog.names()
        if not issubclass(catalog.load_class(name), regplug.Penalty)
        and any(isinstance(v, regplug.Scheduled) for v in vars(catalog.load_class(name)).values())
    ]
    assert [name for name in others if f"`{name}`" not in table] == []


def test_its_grid_is_one():
    (grid,) = re.findall(r"StrengthCV\(train, (\{.*?\}\})\)", PAGE)
    made = Grid(eval(grid))
    assert len(made.candidates) == 4
    assert made.specs(made.candidates[1]) == ["l1({'encoder.*': 1e-05, '*': 0.01})"]
    assert f'`"{made.keys[0]}"`' in PAGE
