"""Steps on a GPU: the state of a CPU's, no wait of the host, and what a graph cannot hold."""

from __future__ import annotations

import warnings

import pytest
import torch

import ao_optim

pytestmark = pytest.mark.gpu

SHAPES = ((300, 256), (77,), (5, 33, 64), (4096,))
KINDS = ("AdamW8bit", "AdamW4bit", "AdamWFp8", "AdamW", "Adam8bit", "Lion8bit")


def parameters(device: str) -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(s).bfloat16().to(device)) for s in SHAPES]
    for p in params:
        p.grad = torch.randn(p.shape).bfloat16().to(device)
    return params


@pytest.mark.parametrize("name", KINDS)
def test_the_state_is_that_of_a_cpu(name: str) -> None:
    """One step from the same parameters: every moment bit for bit, parameters as near as the
    rounding of bfloat16."""
    sides = []
    for device in ("cpu", "cuda"):
        params = parameters(device)
        optimizer = getattr(ao_optim, name)(params, lr=1e-2, weight_decay=0.1)
        optimizer.step()
        sides.append((params, [optimizer.state[p] for p in params]))
    (cpu, expected), (gpu, records) = sides
    for p, q, record, wanted in zip(gpu, cpu, records, expected, strict=True):
        torch.testing.assert_close(p.cpu(), q, rtol=2**-7, atol=0)
        for key, value in wanted.items():
            found = record[key].cpu().reshape(-1)  # bits of a number alone are not seen
            assert torch.equal(found.view(torch.uint8), value.reshape(-1).view(torch.uint8)), key


@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
@pytest.mark.parametrize("name", KINDS)
def test_the_host_does_not_wait(name: str) -> None:
    params = parameters("cuda")
    lr = torch.tensor(1e-3, device="cuda")
    optimizer = getattr(ao_optim, name)(params, lr=lr, bf16_stochastic_round=True)
    optimizer.step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            optimizer.step()
            lr.mul_(0.5)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(p.isfinite().all() for p in params)


def test_a_step_allocates_little() -> None:
    p = torch.nn.Parameter(torch.randn(1 << 24, device="cuda", dtype=torch.bfloat16))
    p.grad = torch.randn_like(p)
    optimizer = ao_optim.AdamW8bit([p])
    optimizer.step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    optimizer.step()
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before < 0.05 * 2 * p.numel()


def test_a_step_is_not_captured() -> None:
    params = parameters("cuda")
    optimizer = ao_optim.AdamW8bit(params)
    optimizer.step()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin()
        try:
            with pytest.raises(RuntimeError, match="cannot be captured in a CUDA graph"):
                optimizer.step()
        finally:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that nothing was captured
                graph.capture_end()
