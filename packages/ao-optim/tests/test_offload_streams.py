"""The offload optimizers on a GPU, where copies, steps and passes overlap: bits and memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from offloaded import BASES, MODES, bits, modes, state_bits
from steps import values
from torch import nn

from ao_optim import AdamW8bit, CPUOffloadOptimizer


def wide(device: str, layers: int = 6) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(layers)))
    return net.bfloat16().to(device)


@pytest.mark.gpu
@modes
@pytest.mark.parametrize("name", BASES)
def test_bits_on_a_gpu(name: str, mode: Any) -> None:
    """Gradients that do not depend on the order of sums: the same bits as the base optimizer has,
    on the CPU if it runs there, although copies, steps and the next backward overlap; gradients of
    two passes add up."""
    kind, options = BASES[name]
    there = "cpu" if mode in (MODES["gradients stay"], MODES["gradients go"]) else "cuda"
    nets, made = [wide(there), wide("cuda")], []
    for net in nets:
        if net is nets[0]:
            optimizer: Any = kind(net.parameters(), **options)
        else:
            optimizer = mode(net.parameters(), kind, **options)
        for step in range(5):
            for part in range(1 if mode is MODES["state in backward"] else 2):
                loss = torch.zeros((), device=net[0].weight.device)
                for place, layer in enumerate(net):
                    g = values(1024, 1024, seed=100 * step + 10 * part + place).bfloat16()
                    loss = loss + (layer.weight.float() * g.to(loss.device).float()).sum()
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        made.append(optimizer)
    assert bits(nets[0].parameters()) == bits(nets[1].parameters())
    assert state_bits(made[0].state_dict()) == state_bits(made[1].state_dict())


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["gradients go", "state in backward"])
def test_memory_on_a_gpu(mode: str) -> None:
    """128 layers of 8 MB: gradients would take 1 GB more, the state 2 GB in bfloat16, 1 in 8 bits.
    Some 0.25 GB of gradients, and as much of state, may be under way."""
    net = nn.Sequential(*(nn.Linear(2048, 2048, bias=False) for _ in range(128))).bfloat16().cuda()
    weights = sum(p.nbytes for p in net.parameters())
    x = torch.randn(64, 2048, device="cuda", dtype=torch.bfloat16)
    if mode == "state in backward":
        optimizer = MODES[mode](net.parameters(), AdamW8bit)
    else:
        optimizer = MODES[mode](net.parameters(), torch.optim.AdamW, fused=True)
    for _ in range(3):
        torch.cuda.reset_peak_memory_stats()
        net(x).square().mean().backward()
        optimizer.step()
        peak = torch.cuda.max_memory_allocated()
        assert all(p.grad is None for p in net.parameters())
    assert weights == 1 << 30
    assert peak < 1.9 * weights
    assert torch.cuda.memory_allocated() < 1.3 * weights


@pytest.mark.gpu
def test_weights_are_read_until_the_device_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """6 weights of 2 MB that the device will read 50 ms later: old values until then."""
    monkeypatch.setattr("ao_optim.offload.BATCH", 1)
    nets = [wide("cpu"), wide("cuda")]
    plain = AdamW8bit(nets[0].parameters(), lr=1e-2)
    optimizer = CPUOffloadOptimizer(
        nets[1].parameters(), AdamW8bit, offload_gradients=True, lr=1e-2
    )
    for step in range(3):
        old = [p.detach().clone() for p in nets[0].parameters()]
        for net in nets:
            for place, layer in enumerate(net):
                g = values(1024, 1024, seed=10 * step + place).to(layer.weight.device)
                (layer.weight.float() * g).sum().backward()
        torch.cuda._sleep(100_000_000)
        read = [p.detach().clone() for p in nets[1].parameters()]
        for each in (plain, optimizer):
            each.step()
            each.zero_grad()
        assert bits(read) == bits(old)
        assert bits(nets[1].parameters()) == bits(nets[0].parameters()) != bits(old)
