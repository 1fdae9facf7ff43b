"""One optimizer that works for another under `regplug run`, in whatever function torch steps."""

import pytest

from tests.command.forked import command

# What torch's own wrapper of a step does, in a module and by names that torch has not.
ELSEWHERE = """
import functools, itertools
from torch.optim import optimizer as module

def moved(function):
    @functools.wraps(function)
    def run(*given, **more):
        of_all, own = module._global_optimizer_pre_hooks, given[0]._optimizer_step_pre_hooks
        for hook in itertools.chain(of_all.values(), own.values()):
            changed = hook(given[0], given, more)
            if changed is not None:
                given, more = changed
        result = function(*given, **more)
        of_all, own = module._global_optimizer_post_hooks, given[0]._optimizer_step_post_hooks
        for hook in itertools.chain(own.values(), of_all.values()):
            hook(given[0], given, more)
        return result
    return run

class Hidden:
    "A step that is no function of Python's."
    hooked = True
    def __init__(self, function):
        self.function = moved(function)
    def __get__(self, instance, owner=None):
        return self if instance is None else functools.partial(self.function, instance)
"""

TRAIN = """
import torch
from elsewhere import Hidden, moved

class Part(torch.optim.Optimizer):                 # works on a part, for another
    def __init__(self, params, lr):
        super().__init__(params, dict(lr=lr))
    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad, alpha=group["lr"])

class Whole(torch.optim.Optimizer):
    def __init__(self, params, lr):
        super().__init__(params, dict(lr=lr))
        self.part = Part(self.param_groups[0]["params"][:1], lr)
    def step(self, closure=None):
        self.part.step()

{wrap}
model = torch.nn.Linear(2, 2)
optimizer = Whole(model.parameters(), lr=0.1)
torch.nn.init.ones_(model.weight)
step = {step}
for _ in range(2):
    optimizer.zero_grad()
    (0 * model(torch.ones(1, 2))).sum().backward()
    step()
print(round(model.weight[0, 0].item(), 6))
"""

MOVED = "torch.optim.Optimizer.profile_hook_step = staticmethod(moved)"
HIDDEN = "Part.step, Whole.step = Hidden(Part.step), Hidden(Whole.step)"


COMPILED = "torch.compile(optimizer.step, backend='eager')"


def run(wrap, folder, step="optimizer.step"):
    script = folder / "script.py"
    script.write_text(TRAIN.format(wrap=wrap, step=step))
    (folder / "elsewhere.py").write_text(ELSEWHERE)
    return command("run", "-p", "l1(0.5)", script, cwd=folder)


@pytest.mark.parametrize("step", ["optimizer.step", COMPILED], ids=["eager", "compiled"])
@pytest.mark.parametrize("wrap", ["", MOVED], ids=["torch", "moved"])
def test_an_inner_one_gets_no_session_of_its_own(wrap, step, tmp_path):
    ended = run(wrap, tmp_path, step)
    assert ended.code == 0, ended.err
    assert float(ended.out) == 1 - 2 * 0.1 * 0.5
    assert "Linear with Whole, 2 real steps" in ended.err
    assert ended.err.count("real steps") == 1


def test_where_no_frame_shows_who_steps_it_is_refused(tmp_path):
    ended = run(HIDDEN, tmp_path)
    assert ended.code != 0
    assert "Part: its step hooks were called, and no frame shows" in ended.err
    assert "regplug.attach(model, optimizer, plugins)" in ended.err
    assert ended.out == ""
