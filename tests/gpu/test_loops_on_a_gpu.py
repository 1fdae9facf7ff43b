"""Loops as people write them on a GPU: groups, streams, scalers, ranks, and very large tensors."""

import contextlib
import itertools

import pytest
import torch
import torch.distributed as dist
from torch import nn

import regplug
from tests.gpu.cards import DEVICE

SPECS = ["l1(linear(0.1, 0.2, steps=4))", "l1(linear(0.1, 0.2, steps=4), delivery='proximal')"]
OPTIMIZERS = {
    "SGD": lambda p, **k: torch.optim.SGD(p, lr=0.05, momentum=0.5, **k),
    "Adam": lambda p, **k: torch.optim.Adam(p, lr=0.05, **k),
}


def network(device=DEVICE, dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4)).to(device, dtype)


def batch(number, device=DEVICE, dtype=torch.float64):
    generator = torch.Generator().manual_seed(number)
    return torch.randn(5, 6, generator=generator, dtype=torch.float64).to(device, dtype)


def forward(model, number):
    w = next(model.parameters())
    return model(batch(number, w.device, w.dtype)).square().mean()


def trained(spec, make, *, kernels, device=DEVICE, steps=5, around=None, wrap=lambda m: m, **own):
    """Return the weights after some steps, in float64 on the CPU."""
    model = wrap(network(device))
    optimizer = make(model.parameters(), **own)
    with regplug.attach(model, optimizer, [spec], kernels=kernels) as session:
        for number in range(steps):
            with around(number) if around else contextlib.nullcontext():
                optimizer.zero_grad()
                forward(model, number).backward()
                optimizer.step()
        assert session.steps == steps
    return [whole(w).cpu() for w in model.parameters()]


def whole(w):
    return w.detach().full_tensor() if hasattr(w, "full_tensor") else w.detach()


def same(found, expected):
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("spec", SPECS)
def test_groups_have_steps_of_their_own(spec, optimizer):
    def by_groups(parameters, **options):
        first, *others = [list(parameters)[i::2] for i in range(2)]
        made = OPTIMIZERS[optimizer](first, **options)
        made.add_param_group({"params": others[0], "lr": 0.2})
        return made

    expected = trained(spec, by_groups, kernels="foreach", device="cpu")
    same(trained(spec, by_groups, kernels="triton"), expected)
    same(trained(spec, by_groups, kernels="triton", fused=True), expected)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("spec", SPECS)
def test_steps_on_two_streams_in_turn(spec, optimizer):
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    busy = torch.randn(2048, 2048, device="cuda")

    @contextlib.contextmanager
    def on_a_stream(number):
        stream = streams[number % 2]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(8):  # so that what does not wait for it is too early
                torch.mm(busy, busy)
            yield
        torch.cuda.current_stream().wait_stream(stream)

    made = spec, OPTIMIZERS[optimizer]
    expected = trained(*made, kernels="foreach", device="cpu")
    same(trained(*made, kernels="triton", around=on_a_stream, fused=True), expected)


def test_two_models_on_two_streams_at_once():
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    models = [network() for _ in streams]
    optimizers = [torch.optim.Adam(m.parameters(), lr=0.05, fused=True) for m in models]
    spec = SPECS[1]
    with (
        regplug.attach(models[0], optimizers[0], [spec], kernels="triton"),
        regplug.attach(models[1], optimizers[1], [spec], kernels="triton"),
    ):
        torch.cuda.synchronize()
        for number in range(5):
            for stream, model, optimizer in zip(streams, models, optimizers, strict=True):
                with torch.cuda.stream(stream):
                    optimizer.zero_grad()
                    forward(model, number).backward()
                    optimizer.step()
        torch.cuda.synchronize()
    expected = trained(spec, OPTIMIZERS["Adam"], kernels="foreach", device="cpu")
    for model in models:
        same([w.detach().cpu() for w in model.parameters()], expected)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("spec", SPECS)
def test_a_scaled_step_that_overflows_leaves_no_trace(spec, optimizer, fused):
    expected = trained(spec, OPTIMIZERS[optimizer], kernels="foreach", device="cpu")
    model = network()
    stepping = OPTIMIZERS[optimizer](model.parameters(), fused=fused)
    scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**12, growth_interval=2)
    scales = [scaler.get_scale()]
    with regplug.attach(model, stepping, [spec], kernels="triton") as session:
        for number in range(5):
            for spoilt in (True, False) if number in (1, 3) else (False,):
                stepping.zero_grad()
                loss = forward(model, number)
                scaler.scale(loss * float("inf") if spoilt else loss).backward()
                scaler.step(stepping)
                scaler.update()
                scales.append(scaler.get_scale())
        assert session.steps == 5
    assert sum(new < old for old, new in itertools.pairwise(scales)) == 2
    same([w.detach().cpu() for w in model.parameters()], expected)


def test_half_precision_weights_under_autocast_and_a_scaler_go_on():
    """float32 weights, float16 activations: the usual loop, beside one of torch's operations."""
    found = []
    for kernels in ("triton", "foreach"):
        model = network(dtype=torch.float32)
        stepping = torch.optim.AdamW(model.parameters(), lr=0.05, fused=True)
        scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**10)
        with regplug.attach(model, stepping, [SPECS[1]], kernels=kernels):
            for number in range(5):
                stepping.zero_grad()
                with torch.autocast(DEVICE, torch.float16):
                    loss = forward(model, number)
                scaler.scale(loss).backward()
                scaler.step(stepping)
                scaler.update()
        found.append([w.detach().cpu() for w in model.parameters()])
    for own, other in zip(*found, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    """A process group of this process alone."""
    store = dist.FileStore(str(tmp_path_factory.mktemp("rank") / "store"), 1)
    backend = "nccl" if DEVICE == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=0, world_size=1)
    yield dist.init_device_mesh(DEVICE, (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("spec", SPECS)
def test_ddp_on_one_rank(spec, optimizer, one_rank):
    made = spec, OPTIMIZERS[optimizer]
    expected = trained(*made, kernels="foreach", device="cpu")
    wrap = nn.parallel.DistributedDataParallel
    same(trained(*made, kernels="triton", wrap=wrap, fused=True), expected)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("spec", SPECS)
def test_fsdp2_on_one_rank(spec, optimizer, one_rank):
    from torch.distributed.fsdp import fully_shard

    def wrap(model):
        fully_shard(model[0], mesh=one_rank)
        fully_shard(model, mesh=one_rank)
        return model

    made = spec, OPTIMIZERS[optimizer]
    expected = trained(*made, kernels="foreach", device="cpu")
    same(trained(*made, kernels="triton", wrap=wrap), expected)


@pytest.mark.parametrize(
    "spec", ["l1(0.25)", "l1(0.25, delivery='proximal')", "elastic_net(0.25, 0.5)"]
)
def test_more_elements_than_32_bits_count(spec):
    """Addresses within one tensor are of 64 bits: neither end is left out, nor done twice."""
    size = 2**31 + 3000
    if torch.cuda.mem_get_info()[0] < 10 * size:
        pytest.skip("it needs 20 GB of the GPU's memory")
    model = nn.ParameterList([torch.ones(size, device="cuda")])
    (w,) = model
    w.grad = torch.zeros_like(w)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    session = regplug.attach(model, optimizer, [spec.replace(")", ", where='all')")])
    with torch.no_grad():
        session.gradients_ready()
        session.before_update()
        session.after_update()
    engine = session.plugins[0]._formula_kernel.choice.engine
    assert [run is not None for run in engine.runs.values()] == [True]
    changed = w.detach() if "proximal" in spec else w.grad
    expected = 0.75 if "elastic" in spec or "proximal" in spec else 0.25
    for piece in changed.split(2**28):
        assert bool((piece == expected).all())
