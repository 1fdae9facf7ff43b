"""Run by test_devices: what sessions and recorders say on another device, as JSON."""

import json
import sys

import torch
from narrow_device import DEVICE, Narrow, narrow
from torch import nn

import regplug
from regplug.report.recorder import Recorder

SPECS = [
    *("l1(0.1, delivery='proximal')", "l2(0.01)", "weight_decay(0.1)", "group_lasso(0.1)"),
    *("max_norm(1.0)", "spectral_norm(0.1)"),
]
HERE = "cpu"


def network(*places):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4, device=HERE), nn.Linear(4, 1, device=HERE))
    for layer, place in zip(model, places, strict=True):
        for name, p in list(layer._parameters.items()):
            layer._parameters[name] = nn.Parameter(place(p.detach().clone()))
    return model


def told(first, second):
    """Attach, step and record with the two layers in these places; the loss is in the first."""
    model = network(first, second)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = regplug.attach(model, optimizer, SPECS, name="net")
    recorder = Recorder(session, every=1)
    for number in range(3):
        for layer, place in zip(model, (first, second), strict=True):
            for p in layer.parameters():
                p.grad = place(torch.full(p.shape, number / 4, device=HERE))
        recorder.note(loss=first(torch.tensor(0.5, device=HERE)))
        optimizer.step()
    recorder.refresh()
    plugins = ["l1(0.1, delivery='loss')", "spectral_norm(0.1, delivery='loss')"]
    with torch.no_grad(), regplug.attach(model, plugins=plugins) as textbook:
        loss = textbook.loss(first(torch.tensor(0.5, device=HERE)))
    return {
        "rows": recorder.rows,
        "norms": [[layer.zeros, layer.norm] for layer in recorder.layers],
        "limit": recorder.before.limit,
        "before": recorder.before.counts,
        "after": recorder.after.counts,
        "loss": float(loss),
        "devices": [str(p.device.type) for p in model.parameters()],
    }


def plain(tensor):
    return tensor


def wide_is_refused():
    try:
        torch.ones(2, dtype=torch.float64, device=DEVICE)
    except TypeError:
        return True
    return False


if __name__ == "__main__":
    how = sys.argv[1]
    if how in ("narrow", "narrow first", "narrow second"):
        with narrow():
            assert wide_is_refused()
            places = [
                Narrow if how in ("narrow", f"narrow {n}") else plain for n in ("first", "second")
            ]
            result = told(*places)
    else:
        torch.set_default_device(how)
        result = told(plain, plain)
    print(json.dumps(result))
