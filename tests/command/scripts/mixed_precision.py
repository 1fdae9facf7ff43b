"""Autocast, a GradScaler, clipping, and a ragged gradient accumulation."""

import argparse

import torch
from torch import nn


def get_args():
    parser = argparse.ArgumentParser()
    parser.add_argument("--accumulate", type=int, default=4)
    parser.add_argument("--clip", type=float, default=0.5)
    parser.add_argument("--output")
    return parser.parse_args()


def run(args):
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(10, 12), nn.GELU(), nn.Dropout(0.1), nn.Linear(12, 3))
    opt = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    batches = [(torch.randn(8, 10), torch.randint(0, 3, (8,))) for _ in range(11)]
    for i, (inputs, targets) in enumerate(batches, start=1):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(net(inputs), targets) / args.accumulate
        if i == 5:
            loss = loss * float("inf")  # a batch that overflows
        scaler.scale(loss).backward()
        if i % args.accumulate == 0 or i == len(batches):
            scaler.unscale_(opt)
            nn.utils.clip_grad_norm_(net.parameters(), args.clip)
            scaler.step(opt)
            scaler.update()
            opt.zero_grad(set_to_none=True)
    torch.save(net.state_dict(), args.output)


if __name__ == "__main__":
    run(get_args())
