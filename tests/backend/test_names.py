"""Private names of other libraries are looked up in one place; anywhere else they fail here."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path
    for folder in ("regplug", "plugins/regplug_builtins")
    for path in (ROOT / folder).rglob("*.py")
)
# Where they are looked up.
HOMES = {
    *(ROOT / "regplug/backend").glob("*.py"),
    ROOT / "plugins/regplug_builtins/_private.py",
}
FRAMES = {"_getframe", "co_name", "f_locals", "f_back", "currentframe"}
BY_NAME = {"getattr", "hasattr", "setattr", "delattr"}

# Names that are no secret of a library's, and why.
ALLOWED = {
    "_exit": "os._exit is documented",
    "_fields": "of a named tuple, documented",
    "_getvalue": "numba's manual of its low-level extensions has it",
    "_python_dispatch": "torch's manual on extending torch has TorchDispatchMode there",
    "_saved_": "torch's manual on autograd tells of a node's attributes of this prefix",
    "_foreach_": "torch documents these functions, as beta ones",
}
# Where wrappers of strangers keep the optimizer that they wrap: guesses by nature.
GUESSES = {("wrapped.py", name) for name in ("_optimizer", "_base_optimizer", "_optim")}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def of_torch() -> set[str]:
    """Return the private attributes of torch's own objects, whatever ours are called."""
    layer = nn.Linear(1, 1)
    objects = (layer, layer.weight, torch.optim.SGD(layer.parameters(), lr=0.1), torch)
    return {name for thing in objects for name in dir(thing) if is_private(name)}


TORCHS = of_torch()


def own_names(trees: list[ast.Module]) -> set[str]:
    """Return the private names that our own code gives to things."""
    found: set[str] = set()
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
    return {name for name in found if is_private(name)}


def is_other(text: str, own: set[str]) -> bool:
    return is_private(text) and (text not in own or text in TORCHS)


def private_names(tree: ast.Module, own: set[str]) -> Iterator[tuple[int, str]]:
    """Yield each private name of another library's, and each look at frames, with its line."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Attribute):
            of_self = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            ours = node.attr in own and (of_self or node.attr not in TORCHS)
            if node.attr in FRAMES or (is_private(node.attr) and not ours):
                names = [node.attr]
        elif isinstance(node, ast.ImportFrom | ast.Import):
            module = (getattr(node, "module", None) or "").split(".")
            given = [part for alias in node.names for part in alias.name.split(".")]
            # A module of the plugins' own package is no one else's.
            names = [] if module[0] == "regplug_builtins" else [*module, *given]
            names = [name for name in names if is_private(name)]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            called = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            texts = [a.value for a in node.args if isinstance(a, ast.Constant)]
            if called in BY_NAME | {"get", "pop"}:
                names = [t for t in texts if isinstance(t, str) and is_other(t, own)]
        elif isinstance(node, ast.Compare | ast.Tuple | ast.Set | ast.List):
            parts = [node.left, *node.comparators] if isinstance(node, ast.Compare) else node.elts
            texts = [part.value for part in parts if isinstance(part, ast.Constant)]
            names = [t for t in texts if isinstance(t, str) and is_other(t, own)]
        for name in names:
            if not any(name.startswith(known) for known in ALLOWED):
                yield node.lineno, name


TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}
OWN = own_names(list(TREES.values()))


@pytest.mark.parametrize(
    "path", [p for p in SOURCES if p not in HOMES], ids=lambda p: str(p.relative_to(ROOT))
)
def test_private_names_of_others_stay_in_the_backend(path: Path) -> None:
    found = [
        f"line {line}: {name}"
        for line, name in private_names(TREES[path], OWN)
        if (path.name, name) not in GUESSES
    ]
    assert not found, f"{path.relative_to(ROOT)}: look it up in regplug/backend, with a way without"


@pytest.mark.parametrize(
    "line",
    [
        "from torch._utils import _flatten_dense_tensors",
        "import torch._dynamo",
        "torch._dynamo.reset()",
        "torch._C._set_grad_enabled(False)",
        "from torch.nn.modules.batchnorm import _NormBase",
        "optimizer._optimizer_step_pre_hooks",
        "module._modules.items()",
        "tensor._version",
        "Tensor._make_subclass(cls, tensor)",
        "getattr(model, '_orig_mod', None)",
        "hasattr(p, '_in_backward_optimizers')",
        "'_modules' in vars(thing)",
        "for name in ('_backward_hooks', '_post_accumulate_grad_hooks'): pass",
        "attributes.get('_forward_hooks', {})",
        "frame.f_code.co_name == '_init_optim_state'",
        "sys._getframe(1)",
        "inspect.currentframe()",
        "frame.f_locals.get('self')",
    ],
)
def test_a_new_private_name_is_seen(line: str) -> None:
    assert list(private_names(ast.parse(line), OWN))


@pytest.mark.parametrize(
    "line",
    ["self._modules = []", "torch._foreach_add_(a, b)", "plugin._session_name", "os._exit(0)"],
)
def test_names_of_our_own_and_documented_ones_are_let_pass(line: str) -> None:
    assert not list(private_names(ast.parse(line), OWN | {"_modules"}))
