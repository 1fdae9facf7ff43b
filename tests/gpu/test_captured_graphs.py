"""Steps under a real capture are refused, and what may be captured works."""

import pytest
import torch
from torch import nn

import regplug
from regplug.errors import RegplugError


def rig(dropout: bool = False) -> tuple[nn.Module, torch.optim.Optimizer, torch.Tensor]:
    layers = [nn.Linear(6, 5), nn.Dropout(0.1)] if dropout else [nn.Linear(6, 5)]
    model = nn.Sequential(*layers).cuda()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, capturable=True)
    return model, optimizer, torch.randn(4, 6, device="cuda")


def warmed_up(step: object, times: int = 3) -> None:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(times):
            step()  # type: ignore[operator]
    torch.cuda.current_stream().wait_stream(stream)


@pytest.mark.parametrize(
    "spec", ["l1(0.1)", "l1(0.1, delivery='proximal')", "weight_decay(0.1)", "max_norm(1)"]
)
def test_a_captured_step_is_refused(spec: str) -> None:
    model, optimizer, x = rig()
    with regplug.attach(model, optimizer, [spec]) as session:

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            model(x).square().mean().backward()
            optimizer.step()

        warmed_up(step)
        assert session.steps == 3
        graph = torch.cuda.CUDAGraph()
        with pytest.raises(RegplugError, match="outside of the graph"), torch.cuda.graph(graph):
            step()
        step()
        assert session.steps == 4


def test_forward_and_backward_may_be_captured_and_each_step_is_right() -> None:
    model, optimizer, x = rig()
    other, plain, _ = rig()
    other.load_state_dict(model.state_dict())
    spec = "l1(linear(0.1, 0, steps=5), delivery='proximal')"
    with (
        regplug.attach(model, optimizer, [spec]) as session,
        regplug.attach(other, plain, [spec]),
    ):

        def backward() -> None:
            model(x).square().mean().backward()

        warmed_up(backward)
        optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            backward()
        for _ in range(4):
            for p in model.parameters():
                p.grad.zero_()
            graph.replay()
            optimizer.step()
            plain.zero_grad()
            other(x).square().mean().backward()
            plain.step()
        assert session.steps == 4
    torch.testing.assert_close(model[0].weight, other[0].weight)


def test_a_captured_loss_and_a_captured_rate_that_moves_are_refused() -> None:
    model, optimizer, x = rig(dropout=True)
    with regplug.attach(model, optimizer, ["l1(0.1, delivery='loss')"]) as session:
        warmed_up(lambda: session.loss(model(x).square().mean()).backward())
        graph = torch.cuda.CUDAGraph()
        with pytest.raises(RegplugError, match="delivery='step'"), torch.cuda.graph(graph):
            session.loss(model(x).square().mean())
    with regplug.attach(model, optimizer, ["dropout(linear(0.5, 0, steps=9))"]):
        warmed_up(lambda: model(x))
        graph = torch.cuda.CUDAGraph()
        with pytest.raises(RegplugError, match="constant rate"), torch.cuda.graph(graph):
            model(x)


def test_to_attach_in_a_capture_is_refused() -> None:
    model, optimizer, x = rig()
    warmed_up(lambda: model(x))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        model(x)  # a graph of nothing is warned of
        with pytest.raises(RegplugError, match="CUDA graph"):
            regplug.attach(model, optimizer, ["l1(0.1)"])
