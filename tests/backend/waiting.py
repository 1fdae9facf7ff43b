"""Run by test_no_waiting: which operations of a step have the host wait for a device, as JSON."""

import json
import sys
import warnings
from contextlib import contextmanager

import narrow_device
import torch
from narrow_device import Narrow, narrow
from torch import nn

import regplug

PENALTIES = ["l1", "l2", "elastic_net", "group_lasso", "l2_sp", "orthogonal", "spectral_norm"]
NO_PROXIMAL = ("orthogonal", "spectral_norm")
NO_GRADIENT = ("orthogonal",)  # but by autograd
DECAYS = [
    *("decay_to_start(0.1)", "decay_to_start(0.1, scale='lr_squared')"),
    "weight_decay(0.1, existing='replace', scale='schedule')",
    "weight_decay(0.1, existing='replace')",
]
SPECS = [
    f"{name}({'0.1, 0.1' if name == 'elastic_net' else '0.1'}, delivery={delivery!r})"
    for name in PENALTIES
    for delivery in ("step", "loss", "proximal")
    if not (delivery == "proximal" and name in NO_PROXIMAL)
    and not (delivery == "step" and name in NO_GRADIENT)
] + [
    "l1(linear(0.1, 0.2, steps=3), delivery='proximal')",
    "group_lasso(0.1, groups='columns', delivery='proximal')",
    "weight_decay(0.1, existing='replace', cautious=True)",
    *DECAYS,
    *("max_norm(0.5)", "max_norm(0.5, groups='columns')", "unit_norm()", "non_negative()"),
    *("l1_ball(0.5)", "l1_ball(0)", "l1_ball(1000)", "hard_threshold(0.5)", "hard_threshold(0)"),
    "dropout(linear(0.5, 0.1, steps=4))",
    "drop_path(linear(0, 0.2, steps=3))",
    "activity(0.1, 0.1, where='first')",
    *("target_sparsity(0.5)", "target_sparsity(0.5, by=3)"),
    *("cpr()", "cpr(init='dependent', kappa=0.5)", "cpr(init='warm_start', kappa=1)"),
]
OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "capturable": lambda p: torch.optim.Adam(p, lr=0.1, capturable=True),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True, capturable=True),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.1, capturable=True),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.1, capturable=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.1, centered=True, capturable=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=0.1, capturable=True),
}

ALWAYS = {
    *("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "_unique2"),
    *("_linalg_eigh", "linalg_eigvalsh", "_linalg_svd", "_linalg_det", "linalg_qr"),
    *("linalg_inv_ex", "linalg_cholesky_ex", "linalg_lstsq", "repeat_interleave"),
}


def with_rate_there(parameters):
    """An optimizer whose learning rate the host does not know."""
    return torch.optim.SGD(parameters, lr=Narrow(torch.tensor(0.1, device="cpu")))


def waits(function, args, kwargs, here):
    """Whether this operation waits, of which some arguments are on the device."""
    name = function._schema.name.partition("::")[2]
    if name in ALWAYS:
        return bool(here)
    if name in ("index", "index_put", "index_put_"):
        return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
    if name == "copy_":
        asynchronous = kwargs.get("non_blocking") or (len(args) > 2 and args[2])
        mixed = isinstance(args[0], Narrow) != isinstance(args[1], Narrow)
        return mixed and not asynchronous
    if name == "_to_copy" and kwargs.get("device") is not None:
        leaves = isinstance(args[0], Narrow)
        goes = torch.device(kwargs["device"]).type == narrow_device.DEVICE.type
        return leaves != goes and not kwargs.get("non_blocking")
    return False


class Depth(nn.Module):
    def __init__(self):
        super().__init__()
        self.p = 0.1

    def forward(self, x):
        return x


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        here = {"device": "cpu"}
        self.first, self.drop = nn.Linear(6, 4, **here), nn.Dropout(0.1)
        self.second, self.StochasticDepth = nn.Linear(4, 5, **here), Depth()
        self.wide = nn.Linear(300, 120, **here)  # no more than a few calls for it

    def forward(self, x):
        return self.second(self.drop(torch.tanh(self.first(x)))).square().mean()


class StochasticDepth(Depth):
    pass


@contextmanager
def watched(seen):
    """Note what waits, with who asked for it."""

    def watch(function, args, kwargs, here):
        if waits(function, args, kwargs, here):
            frame, places = sys._getframe(2), []
            while frame is not None:
                file = frame.f_code.co_filename
                if "/regplug" in file:
                    place = file[file.index("/regplug") + 1 :]
                    places.append(f"{place}:{frame.f_lineno} {frame.f_code.co_name}")
                frame = frame.f_back
            if any("regplug/session/" in place for place in places):
                seen.add(f"{function._schema.name} in {places[0]}")

    narrow_device.watcher = watch
    try:
        yield
    finally:
        narrow_device.watcher = None


def run(spec, make, dtype=torch.float32):
    torch.manual_seed(0)
    model = Net()
    model.StochasticDepth = StochasticDepth()
    for layer in (model.first, model.second, model.wide):
        for name, p in list(layer._parameters.items()):
            layer._parameters[name] = nn.Parameter(Narrow(p.detach().to(dtype, copy=True)))
    optimizer = make(model.parameters())
    seen = set()
    in_loss = "'loss'" in spec or "activity" in spec
    with regplug.attach(model, optimizer, [spec]) as session:
        for _ in range(3):
            # Such a device has no backward pass.
            for p in model.parameters():
                p.grad = Narrow(torch.ones(p.shape, dtype=dtype, device="cpu"))
            with watched(seen):
                with torch.no_grad():
                    loss = model(Narrow(torch.ones(3, 6, dtype=dtype, device="cpu")))
                    loss = session.loss(loss) if in_loss else loss
                if not in_loss:
                    optimizer.step()
        assert session.steps == (0 if in_loss else 3)
        assert all(p.device.type == "nodouble" for p in model.parameters())
    return seen


if __name__ == "__main__":
    warnings.simplefilter("error")
    told = {}
    with narrow():
        for name, make in OPTIMIZERS.items():
            for spec in SPECS:
                if name in ("SGD", "Adam", "capturable") or "proximal" in spec:
                    told[f"{spec}, {name}"] = sorted(run(spec, make))
        for spec in DECAYS:
            told[f"{spec}, a rate there"] = sorted(run(spec, with_rate_there, torch.bfloat16))
        seen = set()  # it does see what it looks for
        x = Narrow(torch.ones(3, device="cpu"))
        tried = [lambda: x.sum().item(), lambda: x[x > 0], lambda: bool((x > 0).all())]
        tried += [
            x.nonzero,
            x.cpu,
            lambda: torch.linalg.eigh(torch.outer(x, x)),
        ]
        found = []
        for one in tried:
            calls = []

            def watch(*arguments, calls=calls):
                calls.append(waits(*arguments))

            narrow_device.watcher = watch
            one()
            narrow_device.watcher = None
            found.append(any(calls))
        told["all that waits"] = [] if all(found) else [str(found)]
    print(json.dumps(told))
