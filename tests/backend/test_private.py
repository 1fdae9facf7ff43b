"""Each private name that is used: without it a public way gives the same, or an error names it."""

import copy
import subprocess
import sys
import textwrap
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import regplug
from regplug.backend import eager, names, precision, private, private_modules, wrappers
from regplug.errors import RegplugError, UnsupportedError
from regplug.finding import search
from regplug.selection import coverage, where
from regplug.session.functional import refuse_transforms
from regplug_builtins import Activity, _private
from tests.helpers.compare import same

GONE = "_no_such_name"


def model_and_optimizer(**settings: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    return model, torch.optim.SGD(model.parameters(), lr=0.1, **settings)


def trained(*plugins: str | regplug.Plugin, steps: int = 3, **settings: Any) -> list[torch.Tensor]:
    """Return the weights after a few steps with these plugins."""
    model, optimizer = model_and_optimizer(**settings)
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(2))
    with regplug.attach(model, optimizer, plugins) as session:
        for _ in range(steps):
            optimizer.zero_grad()
            session.loss(model(x).square().mean()).backward()
            optimizer.step()
        assert session.steps == steps
    return [p.detach().clone() for p in model.parameters()]


# --- tensors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("delivery", ["loss", "step", "proximal"])
def test_without_flattening_views_are_joined(
    monkeypatch: pytest.MonkeyPatch, delivery: str
) -> None:
    def run() -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = nn.ParameterList([torch.randn(3, k % 4 + 1) for k in range(40)])
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        with regplug.attach(
            model, optimizer, [f"l1(0.3, where='all', delivery='{delivery}')"]
        ) as s:
            for _ in range(3):
                optimizer.zero_grad()
                s.loss(torch.stack([p.square().sum() for p in model]).sum()).backward()
                optimizer.step()
        return [p.detach() for p in model]

    wanted = run()
    joined: list[int] = []
    cat = torch.cat

    def counted(tensors: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        joined.append(len(tensors))
        return cat(tensors, *args, **kwargs)

    monkeypatch.delattr("torch._utils._flatten_dense_tensors")
    monkeypatch.delattr("torch._utils._unflatten_dense_tensors")
    monkeypatch.setattr(torch, "cat", counted)
    assert same(run(), wanted)
    assert joined or delivery == "step"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_softshrink_in_place_it_is_copied(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    given = torch.tensor([-3.0, -0.0, 0.0, 0.4, -0.4, 2.0, float("inf")], dtype=dtype)
    found, wanted = given.clone(), given.clone()
    _private.soft_threshold_(wanted, 0.4)
    plain = trained("l1(0.5, delivery='proximal')")
    monkeypatch.setattr(_private, "_SOFTSHRINK", GONE)
    _private.soft_threshold_(found, 0.4)
    assert torch.equal(found, wanted)
    assert torch.equal(found.signbit(), wanted.signbit())
    assert same(trained("l1(0.5, delivery='proximal')"), plain)


def test_without_version_counters_a_session_goes_on_and_says_what_it_does_not_see(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = trained("l1(0.1)")
    monkeypatch.setattr(private, "_VERSION", GONE)
    private._warn_of_versions.cache_clear()
    with pytest.warns(UserWarning, match=f"no Tensor.{GONE}.*another optimizer"):
        assert same(trained("l1(0.1)"), wanted)
    assert same(trained("l1(0.1)"), wanted)  # told once


# --- compiling and transforms ------------------------------------------------------------------


def test_without_the_light_decorator_graphs_break_by_the_public_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(private, "_UNTRACED", GONE)
    calls: list[bool] = []

    @eager.eagerly
    def told(x: torch.Tensor) -> torch.Tensor:
        calls.append(torch.compiler.is_compiling())
        return x + 1

    compiled = torch.compile(lambda x: told(x * 2) * 3, backend="eager")
    assert [compiled(torch.tensor(float(k))).item() for k in range(3)] == [3.0, 9.0, 15.0]
    assert calls == [False] * 3
    torch.compiler.reset()


def test_without_its_attribute_a_compiled_module_is_known_by_its_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    compiled = torch.compile(model, backend="eager")
    assert private.compiled_inside(model) is None
    monkeypatch.setattr(private, "_INNER", GONE)
    assert private.compiled_inside(compiled) is model
    assert wrappers.unwrap_model(compiled) is model  # type: ignore[arg-type]
    assert private.compiled_inside(model) is None  # which has but one child, too
    nn.Module.add_module(compiled, "another", nn.Linear(1, 1))  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match=rf"OptimizedModule\.{GONE}.*compile it in place"):
        private.compiled_inside(compiled)


def test_a_prefix_that_is_unknown_makes_selections_by_name_fail_aloud(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = torch.compile(nn.Sequential(nn.Linear(2, 2)), backend="eager")
    assert names.clean_name("_orig_mod.0.weight") == "0.weight"
    monkeypatch.setattr(names, "_WRAPPERS", names.re.compile(GONE))
    with pytest.raises(RegplugError, match=r"nearest names are _orig_mod\.0\.weight"):
        coverage.cover(where.Selection("0.weight"), model, [])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [GONE, "_dynamo.callback.no_handler", "_no.such.module"])
def test_without_the_callback_no_compilation_is_told_of(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    undo = private.on_compile_start(lambda *args: None)
    assert undo is not None
    undo()
    monkeypatch.setattr(private, "_COMPILE_START", name)
    assert private.on_compile_start(lambda *args: None) is None


def test_without_torchs_answer_transforms_are_known_by_what_they_refuse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def inside(x: torch.Tensor) -> torch.Tensor:
        refuse_transforms()
        return x.sum()

    monkeypatch.setattr(private, "_TRANSFORMS", GONE)
    refuse_transforms()
    with torch.no_grad():
        refuse_transforms()
    for transform in (torch.func.grad, torch.func.vmap, torch.func.jacrev):
        with pytest.raises(UnsupportedError, match=r"inside a transform of torch\.func"):
            transform(inside)(torch.ones(3, 2))


def test_without_torchs_answer_autocast_is_asked_of_each_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(private, "_ANY_AUTOCAST", GONE)
    asked = private.is_any_autocast_enabled(precision._enabled)
    assert not asked()
    with torch.autocast("cpu", torch.bfloat16):
        assert asked()
        with precision.without_autocast():
            assert not asked()


# --- modules -----------------------------------------------------------------------------------


def test_without_its_table_of_children_a_model_is_found_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, optimizer = model_and_optimizer()
    wanted = dict(private_modules.children(model))
    made, half = nn.Linear(1, 1), nn.Module.__new__(nn.Module)
    monkeypatch.setattr(private_modules, "_CHILDREN", GONE)
    assert dict(private_modules.children(model)) == wanted
    assert private_modules.is_made(made)
    assert not private_modules.is_made(half)
    assert search.model_of(optimizer) is model


def test_without_its_table_of_parameters_plain_tensors_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tensors = [torch.ones(2, requires_grad=True), nn.Parameter(torch.ones(2))]
    both = search.model_of(torch.optim.SGD(tensors, lr=0.1))
    assert [name for name, _ in both.named_parameters()] == ["param_0", "param_1"]
    monkeypatch.setattr(private_modules, "_PARAMETERS", GONE)
    known = search.model_of(torch.optim.SGD(tensors[1:], lr=0.1))
    assert [p is tensors[1] for p in known.parameters()] == [True]
    with pytest.raises(UnsupportedError, match=rf"Module\.{GONE}.*make it an nn.Parameter"):
        search.model_of(torch.optim.SGD(tensors, lr=0.1))


def test_without_their_base_normalizations_are_the_public_classes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layers = [nn.BatchNorm1d(2), nn.LazyBatchNorm2d(), nn.SyncBatchNorm(2), nn.InstanceNorm3d(2)]
    assert all(isinstance(layer, private.normalizations()) for layer in layers)
    monkeypatch.setattr(private, "_NORMALIZATION", GONE)
    assert len(private.normalizations()) > 1
    assert all(isinstance(layer, private.normalizations()) for layer in layers)
    assert not isinstance(nn.Linear(1, 1), private.normalizations())


def test_without_their_base_dropouts_are_the_public_classes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Own(nn.Dropout2d):
        pass

    layers = [nn.Dropout(), nn.Dropout1d(), Own(), nn.Dropout3d(), nn.AlphaDropout()]
    layers.append(nn.FeatureAlphaDropout())
    monkeypatch.setattr(_private, "_DROPOUT", GONE)
    assert all(map(_private.is_dropout, layers))
    assert not _private.is_dropout(nn.ReLU())
    model = nn.Sequential(nn.Linear(2, 2), Own(0.5))
    with regplug.attach(model, torch.optim.SGD(model.parameters(), 0.1), ["dropout(0.25)"]):
        assert model[1].p == 0.25


# --- the plugin that watches outputs -----------------------------------------------------------


def test_without_the_word_of_a_backward_pass_activity_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(2, 2), nn.ReLU())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return checkpoint(self.inner, x, use_reentrant=False)  # type: ignore[no-any-return]

    model = Checkpointed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plugin = Activity(0.1)
    with regplug.attach(model, optimizer, [plugin]) as session:
        session.loss(model(torch.ones(3, 2)).sum()).backward()
        assert not plugin._outputs  # what was computed again did not count
    monkeypatch.setattr(_private, "_BACKWARD", GONE)
    with pytest.raises(UnsupportedError, match=rf"activity: .*torch\.{GONE}.*leave activity out"):
        regplug.attach(model, optimizer, ["activity(0.1)"])


def test_without_their_class_fake_tensors_are_known_by_what_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, optimizer = model_and_optimizer()
    with regplug.attach(model, optimizer, ["activity(0.1)"]) as session:
        torch.export.export(copy.deepcopy(model), (torch.ones(4, 3),))
        torch.export.export(model, (torch.ones(4, 3),))
        loss = session.loss(model(torch.ones(4, 3)).sum())
        assert type(loss) is torch.Tensor
        torch.export.export(model, (torch.ones(4, 3),))
        assert session.plugins[0]._outputs  # type: ignore[attr-defined]
        monkeypatch.setattr(_private, "_FAKE", GONE)
        again = session.loss(model(torch.ones(4, 3)).sum())
        assert type(again) is torch.Tensor
        assert again.item() == loss.item()


def test_nothing_private_is_imported_with_the_package() -> None:
    """``import regplug`` works where each of these names is gone before."""
    code = """
        import torch, torch.distributed as dist
        import torch._utils, torch._compile, torch.nn.modules.batchnorm as norms
        import torch.nn.modules.dropout as dropouts
        for home, name in (
            (torch._utils, "_unflatten_dense_tensors"), (torch._compile, "_disable_dynamo"),
            (dist.distributed_c10d, "_get_default_store"),
            (torch._C._nn, "softshrink"), (dropouts, "_DropoutNd"), (norms, "_NormBase"),
        ):
            delattr(home, name)
        import regplug, regplug_builtins
        model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        specs = ["l1(0.1, delivery='proximal')", "dropout(0.2)"]
        with regplug.attach(model, optimizer, specs) as session:
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
            print(session.steps, float(model[1].p))
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert ended.stdout.split() == ["1", "0.2"], ended.stderr
