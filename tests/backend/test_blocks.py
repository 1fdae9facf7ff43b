"""Memory for results that are used up at once."""

import threading

import pytest
import torch
from torch import nn

import regplug
from regplug.backend import blocks
from regplug.backend.blocks import BLOCK, scratch

LARGE = BLOCK // 2


def test_scratch_is_the_same_memory_each_time_and_apart_where_it_must_be():
    w = torch.zeros(LARGE)
    kept = scratch(w)
    assert kept.data_ptr() == scratch(torch.zeros(2, LARGE)).data_ptr()
    pointers = {kept.data_ptr(), scratch(w, "other").data_ptr(), scratch(w.double()).data_ptr()}
    thread = threading.Thread(target=lambda: pointers.add(scratch(w).data_ptr()))
    thread.start()
    thread.join()
    assert len(pointers) == 4


@pytest.mark.parametrize(
    ("like", "large"),
    [
        (torch.zeros(1000, 800), True),
        (nn.Parameter(torch.zeros(1000, 800)), True),
        (torch.zeros(1000, 800, dtype=torch.bfloat16), True),
        (torch.zeros(BLOCK), True),
        (torch.zeros(1000, 800).t(), False),
        (torch.zeros(BLOCK + 1), False),
        (torch.zeros(LARGE - 1), False),
        (torch.zeros(0), False),
        (torch.zeros(()), False),
        (torch.zeros(1000, 800, device="meta"), False),
    ],
    ids=str,
)
def test_scratch_is_like_what_it_is_for_or_left_to_the_allocator(like, large):
    found = scratch(like)
    assert (found is not None) == large
    if found is not None:
        assert (found.shape, found.dtype, found.device) == (like.shape, like.dtype, like.device)
        assert not found.requires_grad


def test_scratch_that_was_first_asked_for_in_inference_mode_serves_everywhere():
    """Catches scratch that is an inference tensor, which torch lets nobody write to outside."""
    like = torch.ones(LARGE, dtype=torch.complex64)  # nobody else asks for these
    with torch.inference_mode():
        scratch(like).fill_(1)
    scratch(like).mul_(2)


def test_penalties_of_two_threads_do_not_disturb_each_other():
    """Each session of a program may step in a thread of its own."""

    def run(seed, found):
        generator = torch.Generator().manual_seed(seed)
        model = torch.nn.ParameterList([torch.randn(800, 700, generator=generator)])
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        regplug.attach(model, optimizer, ["elastic_net(0.3, 0.2)", "l1(0.5, delivery='proximal')"])
        for _ in range(12):
            model[0].grad = torch.randn(800, 700, generator=generator)
            optimizer.step()
        found[seed] = model[0].detach().clone()

    alone, together = {}, {}
    for seed in range(3):
        run(seed, alone)
    threads = [threading.Thread(target=run, args=(seed, together)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, weights in alone.items():
        assert torch.equal(together[seed], weights)


def test_a_device_without_a_cache_to_fit_gets_larger_blocks(monkeypatch):
    """There each block is a launch or more, whatever its size."""
    assert blocks.block_of(torch.device("meta")) == 16 * blocks.BLOCK
    large = [torch.empty(40 * blocks.BLOCK, device="meta"), torch.empty(10, device="meta")]
    sizes = [[t.numel() for t in batch] for (batch,) in blocks.batches([large])]
    assert [max(size) for size in sizes] == [16 * blocks.BLOCK] * 2 + [8 * blocks.BLOCK, 10]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**9, 10**10))
    blocks.block_of.cache_clear()
    try:
        assert blocks.block_of(torch.device("cuda", 0)) == 5_000_000  # 20 MB of a free GB
    finally:
        blocks.block_of.cache_clear()
