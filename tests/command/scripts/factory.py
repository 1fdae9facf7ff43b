"""The model comes from another module, the optimizer from a function, and no one calls the whole."""

import sys

import torch
from parts.networks import make_model


def make_optimizer(name, parameters, **options):
    return getattr(torch.optim, name)(parameters, **options)


def fit(parts, optimizer, data, epochs=3):
    for _ in range(epochs):
        for x, y in data:
            prediction = parts["head"](parts["backbone"](x))
            loss = torch.nn.functional.cross_entropy(prediction, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def main(argv):
    torch.manual_seed(2)
    data = [(torch.randn(6, 7), torch.randint(0, 2, (6,))) for _ in range(3)]
    network = make_model(width=9)
    fit(network, make_optimizer("RMSprop", network.parameters(), lr=1e-2), data)
    torch.save(network.state_dict(), argv[0])


main(sys.argv[1:])
