"""Memory for results that are used up at once."""

import threading

import pytest
import torch

import regplug
from regplug.blocks import BLOCK, TINY, scratch


def test_scratch_is_the_same_memory_each_time_and_apart_where_it_must_be():
    w = torch.zeros(TINY)
    kept = scratch(w)
    assert kept.data_ptr() == scratch(torch.zeros(2, TINY)).data_ptr()
    pointers = {kept.data_ptr(), scratch(w, "other").data_ptr(), scratch(w.double()).data_ptr()}
    thread = threading.Thread(target=lambda: pointers.add(scratch(w).data_ptr()))
    thread.start()
    thread.join()
    assert len(pointers) == 4


@pytest.mark.parametrize(
    "like",
    [
        torch.zeros(300, 200),
        torch.zeros(300, 200).t(),
        torch.zeros(300, 200, dtype=torch.bfloat16),
        torch.zeros(BLOCK),
        torch.zeros(BLOCK + 1),
        torch.zeros(3, 2),
        torch.zeros(0),
        torch.zeros(()),
    ],
    ids=lambda like: f"{tuple(like.shape)} {like.dtype}",
)
def test_scratch_is_like_what_it_is_for(like):
    found = scratch(like)
    assert (found.shape, found.dtype, found.device) == (like.shape, like.dtype, like.device)
    assert found.data_ptr() != like.data_ptr() or like.numel() == 0
    assert not found.requires_grad


def test_scratch_that_was_first_asked_for_in_inference_mode_serves_everywhere():
    like = torch.ones(TINY, dtype=torch.complex64)  # nobody else asks for these
    with torch.inference_mode():
        scratch(like).fill_(1)
    scratch(like).mul_(2)


def test_penalties_of_two_threads_do_not_disturb_each_other():
    """Each session of a program may step in a thread of its own."""

    def run(seed, found):
        generator = torch.Generator().manual_seed(seed)
        model = torch.nn.ParameterList([torch.randn(300, 400, generator=generator)])
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        regplug.attach(model, optimizer, ["elastic_net(0.3, 0.2)", "l1(0.5, delivery='proximal')"])
        for _ in range(30):
            model[0].grad = torch.randn(300, 400, generator=generator)
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
