"""Accelerate: its loop, its checkpoints, its trackers, its ways of wrapping."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import regplug
from tests.helpers.accelerating import forget_accelerate, shard_with
from tests.helpers.nets import dropout_net
from tests.helpers.pair import Pair
from tests.helpers.penalties import Remembers

accelerate = pytest.importorskip("accelerate")


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    forget_accelerate()


def prepared(fsdp: bool = False, **options: Any) -> tuple[Any, nn.Module, Any]:
    accelerator = accelerate.Accelerator(cpu=True, **options)
    if fsdp:
        shard_with(accelerator)
    model = dropout_net(0.1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    return accelerator, *accelerator.prepare(model, optimizer)


def step(accelerator: Any, model: nn.Module, optimizer: Any, seed: int = 0) -> None:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
    accelerator.backward(model(x).square().mean())
    optimizer.step()
    optimizer.zero_grad()


# --- the wrapper -------------------------------------------------------------------------------


def test_the_wrappers_own_hooks_do_not_work_and_are_not_used() -> None:
    """Its __init__ never calls super().__init__."""
    accelerator, model, optimizer = prepared()
    with pytest.raises(AttributeError):
        optimizer.register_step_pre_hook(lambda *_: None)
    with regplug.attach(model, optimizer, ["l1(0.1)"]) as session:
        assert session.optimizer is optimizer.optimizer
        step(accelerator, model, optimizer)
        assert session.steps == 1


def test_ragged_accumulation_counts_real_steps_and_keeps_the_strength() -> None:
    """A penalty in the loss has 3/4 of its strength in the tail of 7 batches by 4."""
    accelerator, model, optimizer = prepared(gradient_accumulation_steps=4)
    loader = accelerator.prepare(torch.utils.data.DataLoader(torch.zeros(14, 3), batch_size=2))
    strength = 0.25
    for how, shares in (("step", [1.0, 1.0]), ("loss", [1.0, 0.75])):
        seen: list[float] = []

        class Watch(regplug.Plugin):
            @regplug.hookimpl
            def on_gradients(self, seen: Any = seen) -> None:
                gradient = model[0].weight.grad
                assert gradient is not None
                seen.append(gradient.abs().max().item() / strength)

        with regplug.attach(model, optimizer, [f"l1({strength}, delivery={how!r})", Watch()]) as s:
            for x in loader:
                with accelerator.accumulate(model):
                    # The data's gradient is zero, so that what is seen is the penalty's.
                    accelerator.backward(s.loss((model(x) * 0).sum()))
                    optimizer.step()
                    optimizer.zero_grad()
            assert s.steps == 2
        assert seen == pytest.approx(shares)


def scheduled(rank: int) -> list[Any]:
    """Accelerate's schedulers go num_processes times as fast."""
    accelerator, model, optimizer = prepared()
    scheduler = accelerator.prepare(torch.optim.lr_scheduler.StepLR(optimizer.optimizer, 1, 0.5))
    seen = []
    with regplug.attach(model, optimizer, ["l1(linear(0, 1, steps=10))"]) as session:
        for _ in range(4):
            step(accelerator, model, optimizer)
            scheduler.step()
            seen.append(session.metrics()["l1/strength"])
    return [seen, optimizer.param_groups[0]["lr"]]


def test_strengths_follow_real_steps_on_any_number_of_processes(pair: Pair) -> None:
    alone, lr = scheduled(0)
    assert alone == pytest.approx([0.1, 0.2, 0.3, 0.4])
    for seen, faster in pair.run(scheduled):
        assert seen == alone
        assert faster < lr / 10  # the fact: eight halvings instead of four


def test_bf16_autocast_delivers_in_full() -> None:
    accelerator, model, optimizer = prepared(mixed_precision="bf16")
    with regplug.attach(model, optimizer, ["l1(0.5)"], accelerator=accelerator):
        accelerator.backward((model(torch.ones(2, 3)) * 0).sum())
        before = model[0].weight.detach().clone()
        optimizer.step()
        # What reaches Adam is 0.5·sign(w), so each weight moves by lr against its sign.
        assert torch.allclose(model[0].weight, before - 0.1 * before.sign(), atol=1e-6)


# --- FSDP2: parameters that are replaced by prepare --------------------------------------------


def around_prepare(rank: int, before: bool, fsdp: bool) -> Any:
    accelerator = accelerate.Accelerator(cpu=True)
    if fsdp:
        shard_with(accelerator)
    model = dropout_net(0.1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    plugins = ["l1(0.05, delivery='proximal')", "weight_decay(0.1)"]
    if before:
        session = regplug.attach(model, optimizer, plugins)
    model, optimizer = accelerator.prepare(model, optimizer)
    if not before:
        session = regplug.attach(model, optimizer, plugins)
    for seed in range(3):
        step(accelerator, model, optimizer, seed)
    metrics = session.metrics()
    session.detach()
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()
    weights = [p.full_tensor() if fsdp else p for p in model.parameters()]
    return [w.tolist() for w in weights], metrics


@pytest.mark.parametrize("fsdp", [False, True])
def test_attaching_before_prepare_is_the_same_as_after(pair: Pair, fsdp: bool) -> None:
    """FSDP2's prepare replaces the optimizer's parameters."""
    alone = torch.tensor(around_prepare(0, False, False)[0][0])
    forget_accelerate()
    results = [r for before in (True, False) for r in pair.run(around_prepare, before, fsdp)]
    for weights, metrics in results:
        assert weights == results[0][0]
        assert metrics == results[0][1]
        assert torch.allclose(torch.tensor(weights[0]), alone, atol=1e-6)


# --- checkpoints -------------------------------------------------------------------------------


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "regplug").iterdir())


@pytest.mark.parametrize("told", [True, False])
def test_checkpoints_hold_the_session_with_and_without_the_argument(
    tmp_path: Path, told: bool
) -> None:
    accelerator, model, optimizer = prepared()
    more = {"accelerator": accelerator} if told else {}
    spec = "l1(linear(0, 1, steps=10))"
    with regplug.attach(model, optimizer, [spec], **more) as session:
        for _ in range(3):
            step(accelerator, model, optimizer)
        accelerator.save_state(str(tmp_path))
        step(accelerator, model, optimizer)
        assert session.steps == 4
        accelerator.load_state(str(tmp_path))
        assert session.steps == 3
        assert session.metrics()["l1/strength"] == pytest.approx(0.3)
    assert names(tmp_path) == ["regplug.pt"]
    assert set(torch.load(tmp_path / "regplug" / "regplug.pt", weights_only=True)) >= {"state"}


def two(accelerator: Any, parts: list[tuple[nn.Module, Any]], order: list[int]) -> list[Any]:
    spec = "l1(linear(0, 1, steps=100))"
    sessions = {}
    for index in order:
        model, optimizer = parts[index]
        sessions[index] = regplug.attach(
            model, optimizer, [spec], accelerator=accelerator, name=["g/1", "d"][index]
        )
    return [sessions[0], sessions[1]]


def test_two_sessions_attached_in_another_order_restore_by_name(tmp_path: Path) -> None:
    """Objects that Accelerate saves by position restore each other's state."""
    accelerator = accelerate.Accelerator(cpu=True)
    models = [dropout_net(0.1, 0), dropout_net(0.1, 1)]
    parts = [tuple(accelerator.prepare(m, torch.optim.SGD(m.parameters(), lr=0.1))) for m in models]
    sessions = two(accelerator, parts, [0, 1])
    for count, (model, optimizer) in zip((2, 5), parts, strict=True):
        for _ in range(count):
            step(accelerator, model, optimizer)
    accelerator.save_state(str(tmp_path))
    for session in sessions:
        session.detach()
    sessions = two(accelerator, parts, [1, 0])
    accelerator.load_state(str(tmp_path))
    assert [session.steps for session in sessions] == [2, 5]
    assert names(tmp_path) == ["d.pt", "g%2F1.pt"]


def test_equal_names_on_one_accelerator_are_refused() -> None:
    accelerator, model, optimizer = prepared()
    first = regplug.attach(model, optimizer, ["l1(0.1)"], accelerator=accelerator)
    with pytest.raises(regplug.errors.SpecError, match="name='another'"):
        regplug.attach(model, optimizer, ["l2(0.1)"])
    regplug.attach(model, optimizer, ["l2(0.1)"], name="another").detach()
    first.detach()
    regplug.attach(model, optimizer, ["l2(0.1)"]).detach()


def test_detach_leaves_nothing_on_the_accelerator(tmp_path: Path) -> None:
    accelerator, model, optimizer = prepared()
    kept = accelerator._save_model_state_pre_hook, accelerator._load_model_state_pre_hook
    session = regplug.attach(model, optimizer, ["l1(0.1)"], accelerator=accelerator)
    assert [len(hooks) for hooks in kept] == [1, 1]
    session.detach()
    session.detach()
    assert [len(hooks) for hooks in kept] == [0, 0]
    accelerator.save_state(str(tmp_path))
    assert not (tmp_path / "regplug").exists()


def test_a_failed_attach_leaves_nothing_on_the_accelerator() -> None:
    accelerator, model, optimizer = prepared()
    with pytest.raises(regplug.errors.SelectionError):
        regplug.attach(model, optimizer, ["l1(0.1, where='nothing.*')"], accelerator=accelerator)
    assert not accelerator._save_model_state_pre_hook


def test_checkpoints_of_other_sessions_are_told(tmp_path: Path) -> None:
    accelerator, model, optimizer = prepared()
    accelerator.save_state(str(tmp_path / "without"))
    with regplug.attach(model, optimizer, ["l1(0.1)"], name="one") as session:
        with pytest.warns(UserWarning, match="saved without regplug: session 'one' goes on"):
            accelerator.load_state(str(tmp_path / "without"))
        step(accelerator, model, optimizer)
        accelerator.save_state(str(tmp_path / "one"))
        weight = model[0].weight.detach().clone()
    with regplug.attach(model, optimizer, ["l1(0.1)"], name="other") as session:
        step(accelerator, model, optimizer)
        moved = model[0].weight.detach().clone()
        with (
            pytest.raises(regplug.errors.StateError, match=r"no state of session 'other'.*'one'"),
            pytest.warns(UserWarning, match="'one', and no session of that name"),
        ):
            accelerator.load_state(str(tmp_path / "one"))
        # Nothing was loaded, neither here nor there.
        assert session.steps == 1
        assert torch.equal(model[0].weight, moved)
        assert not torch.equal(moved, weight)
    with (
        regplug.attach(model, optimizer, ["l2(0.1)"], name="one"),
        pytest.raises(regplug.errors.StateError, match="plugins"),
    ):
        accelerator.load_state(str(tmp_path / "one"))


def test_something_else_for_an_accelerator_is_refused() -> None:
    model = dropout_net(0.1)
    with pytest.raises(regplug.errors.SpecError, match=r"accelerate\.Accelerator, got str"):
        regplug.attach(model, plugins=["l1(0.1)"], accelerator="cpu")  # type: ignore[arg-type]


def save_and_load(rank: int, folder: str, fsdp: bool) -> Any:
    """Return what the plugin kept when it was saved, and after loading; per rank where sharded."""
    accelerator, model, optimizer = prepared(fsdp)
    plugin = Remembers()
    with regplug.attach(model, optimizer, [plugin, "l1(0.1)"], accelerator=accelerator) as session:
        for seed in range(2):
            step(accelerator, model, optimizer, seed)
        saved = {name: w.tolist() for name, w in plugin._sums.items()}
        accelerator.save_state(folder)
        accelerator.wait_for_everyone()
        step(accelerator, model, optimizer, 5)
        changed = {name: w.tolist() for name, w in plugin._sums.items()}
        accelerator.load_state(folder)
        loaded = {name: w.tolist() for name, w in plugin._sums.items()}
        assert session.steps == 2  # nor did the dummy step of loading count
    return saved, changed, loaded


@pytest.mark.parametrize("fsdp", [False, True])
def test_state_is_saved_per_rank_where_it_is_sharded(
    pair: Pair, tmp_path: Path, fsdp: bool
) -> None:
    """Register_for_checkpointing saves on the main process only."""
    answers = pair.run(save_and_load, str(tmp_path), fsdp)
    for saved, changed, loaded in answers:
        assert loaded == saved != changed
    if fsdp:
        assert names(tmp_path) == ["regplug.rank0.pt", "regplug.rank1.pt"]
        assert answers[0][0] != answers[1][0]
    else:
        assert names(tmp_path) == ["regplug.pt"]
        assert answers[0][0] == answers[1][0]


def load_shards(rank: int, folder: str, plugins: list[Any]) -> str:
    accelerator, model, optimizer = prepared()
    with regplug.attach(model, optimizer, plugins, accelerator=accelerator) as session:
        try:
            for hook in accelerator._load_model_state_pre_hook.values():
                hook([], folder)
        except regplug.errors.StateError as error:
            return str(error)
        return f"step {session.steps}"


def save_shards(rank: int, folder: str, plugins: list[Any]) -> None:
    accelerator, model, optimizer = prepared(True)
    with regplug.attach(model, optimizer, plugins, accelerator=accelerator):
        step(accelerator, model, optimizer)
        accelerator.save_state(folder)


def test_shards_restore_elsewhere_only_what_is_no_part(pair: Pair, tmp_path: Path) -> None:
    pair.run(save_shards, str(tmp_path / "tensors"), [Remembers(), "l1(0.1)"])
    told = load_shards(0, str(tmp_path / "tensors"), [Remembers(), "l1(0.1)"])
    assert "sharded over 2 ranks" in told
    assert "the ranks and the mesh of before" in told
    forget_accelerate()
    pair.run(save_shards, str(tmp_path / "numbers"), ["l1(0.1)"])
    assert load_shards(0, str(tmp_path / "numbers"), ["l1(0.1)"]) == "step 1"


# --- trackers ----------------------------------------------------------------------------------


def test_metrics_go_to_the_real_tensorboard(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tensorboard's own dependencies
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        accelerator, model, optimizer = prepared(log_with="tensorboard", project_dir=tmp_path)
        accelerator.init_trackers("run")
    with regplug.attach(model, optimizer, ["l1(0.5)", "dropout(linear(0.4, 0, steps=4))"]) as s:
        for _ in range(3):
            step(accelerator, model, optimizer)
            accelerator.log(s.metrics(), step=s.steps)
        last = s.metrics()
    accelerator.end_training()
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    assert set(last) <= set(events.Tags()["scalars"])
    for key in last:
        points = events.Scalars(key)
        assert [point.step for point in points] == [1, 2, 3]
        assert points[-1].value == pytest.approx(last[key], rel=1e-6)
