"""A loss of other weights than the module's own: penalized rightly, or refused."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint

import regplug
from regplug import hookimpl
from regplug.errors import UnsupportedError
from tests.helpers.nets import tanh_net

X = torch.ones(2, 3)


def network():
    return tanh_net(3, 4, 1)


class Weighs(regplug.Plugin):
    """A term of the model's own weights, as a plain tensor."""

    @hookimpl
    def on_loss(self, session):
        return sum(w.square().sum() for w in session.model.parameters())


PLUGINS = ["l1(0.1)", "l2(0.1, delivery='loss')", "orthogonal(0.1)", Weighs]


def attached(model, plugin):
    return regplug.attach(model, plugins=[plugin if isinstance(plugin, str) else plugin()])


def by_functional_call(model):
    weights = {name: w.detach().clone().requires_grad_() for name, w in model.named_parameters()}
    return functional_call(model, weights, X).sum()


def by_the_same_memory(model):
    weights = {name: w.detach().requires_grad_() for name, w in model.named_parameters()}
    return torch.func.functional_call(model, weights, (X,)).sum()


def by_an_ensemble(model):
    weights, buffers = stack_module_state([network() for _ in range(3)])
    base = copy.deepcopy(model)

    def call(weights, buffers):
        return functional_call(base, (weights, buffers), (X,))

    return vmap(call)(weights, buffers).sum()


def by_stateless(model):
    from torch.nn.utils import stateless

    weights = {name: w.detach().clone().requires_grad_() for name, w in model.named_parameters()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return stateless.functional_call(model, weights, (X,)).sum()


def by_a_copy(model):
    return copy.deepcopy(model)(X).sum()


@pytest.mark.parametrize("plugin", PLUGINS)
@pytest.mark.parametrize(
    "make", [by_functional_call, by_the_same_memory, by_an_ensemble, by_stateless, by_a_copy]
)
def test_loss_of_other_weights_is_refused(make, plugin):
    model = network()
    session = attached(model, plugin)
    with pytest.raises(UnsupportedError, match=r"functional_call.*weights in use"):
        session.loss(make(model))
    assert all(w.grad is None for w in model.parameters())


@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_loop_that_changes_over_to_other_weights_is_noticed_within_twice_the_steps(plugin):
    model = network()
    session = attached(model, plugin)
    for _ in range(5):
        session.loss(model(X).sum())

    def go_on():
        for _ in range(6):
            session.loss(by_functional_call(model))

    with pytest.raises(UnsupportedError, match="functional_call"):
        go_on()


@pytest.mark.parametrize("plugin", PLUGINS)
@pytest.mark.parametrize("transform", ["grad", "vmap", "jacrev"])
def test_the_loss_event_inside_a_transform_is_refused_by_name(transform, plugin):
    model = network()
    session = attached(model, plugin)
    weights = {name: w.detach() for name, w in model.named_parameters()}

    def of(weights, x):
        return session.loss(functional_call(model, weights, (x,)).sum())

    calls = {
        "grad": lambda: grad(of)(weights, X),
        "vmap": lambda: vmap(of, in_dims=(None, 0))(weights, X),
        "jacrev": lambda: torch.func.jacrev(of)(weights, X),
    }
    with pytest.raises(UnsupportedError, match=r"torch\.func.*outside of the transform"):
        calls[transform]()


def test_a_transform_where_nothing_is_added_goes_on():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = regplug.attach(model, optimizer, ["l2(0.5, delivery='step')"])
    weights = {name: w.detach() for name, w in model.named_parameters()}

    def of(weights):
        return session.loss(functional_call(model, weights, (X,)).sum())

    gradients = grad(of)(weights)
    plain = grad(lambda weights: functional_call(model, weights, (X,)).sum())(weights)
    before = model[0].weight.detach().clone()
    for name, w in model.named_parameters():
        assert torch.equal(gradients[name], plain[name])
        w.grad = gradients[name]
    optimizer.step()
    expected = before - 0.1 * (plain["0.weight"] + 2 * 0.5 * before)
    torch.testing.assert_close(model[0].weight.detach(), expected)


def test_the_outer_loss_of_meta_learning_penalizes_the_weights_that_it_learns():
    model = network().double()
    session = regplug.attach(model, plugins=["l2(0.5)"])
    x, weights = X.double(), dict(model.named_parameters())
    inner = torch.autograd.grad(
        functional_call(model, weights, (x,)).square().sum(), weights.values(), create_graph=True
    )
    adapted = {n: w - 0.1 * g for (n, w), g in zip(weights.items(), inner, strict=True)}
    outer = functional_call(model, adapted, (x,)).square().sum()
    bare = torch.autograd.grad(outer, list(weights.values()), retain_graph=True)
    session.loss(outer).backward()
    for (name, w), g in zip(weights.items(), bare, strict=True):
        added = 2 * 0.5 * w.detach() if name.endswith("weight") else 0
        torch.testing.assert_close(w.grad, g + added)


def test_a_loss_of_other_shapes_is_told_once():
    """A hypernetwork makes the weights, of which the graph says nothing."""
    model = nn.Linear(3, 1, bias=False)
    maker = nn.Linear(2, 3)
    session = regplug.attach(model, plugins=["l1(0.1)"])

    def loop():
        for _ in range(20):
            session.loss(functional_call(model, {"weight": maker(torch.ones(1, 2))}, (X,)).sum())

    with pytest.warns(UserWarning, match="comes from none of the weights of Linear") as caught:
        loop()
    assert len(caught) == 1


class Whole(nn.Module):
    """All of it is computed again in the backward pass, by which its graph hides its weights."""

    def __init__(self):
        super().__init__()
        self.inner = network()

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=True)


def usual(model):
    return model(X).sum()


def checkpointed(model):
    return model(X.clone().requires_grad_()).sum()


def of_nothing(model):
    return torch.zeros((), requires_grad=True)


def of_data(model):
    return torch.tensor(1.0)


def replicated(model):
    return nn.DataParallel(model)(X).sum()


@pytest.mark.parametrize(
    ("make", "model"),
    [
        (usual, network),
        (usual, lambda: torch.compile(network(), backend="aot_eager")),
        (usual, lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 1))),
        (checkpointed, Whole),
        (of_nothing, network),
        (of_data, network),
        (replicated, network),
    ],
)
def test_usual_losses_are_neither_refused_nor_told(make, model):
    """Catches a refusal, and a warning, which would be an error here."""
    model = model()
    session = regplug.attach(model, plugins=["l1(0.1)"])
    for _ in range(4):
        loss = session.loss(make(model))
        if loss.requires_grad:
            loss.backward()
