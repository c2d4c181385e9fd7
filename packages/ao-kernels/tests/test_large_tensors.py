"""Linears of tensors with more than 2**31 elements, on a GPU; the same checks of small ones on a
CPU show that the checks work.

T or M tokens, E experts, N output features, K input features.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_linear_fuzz import LINEARS
from torch import Tensor

from ao_kernels import OPS
from ao_kernels.ops import quantize_block

GROUPED = [name for name in OPS if name.endswith("_grouped_linear")]
MANY = 2**31
# Elements, and the device that has room for them.
SIZES = [
    pytest.param(2**15, "cpu", id="small"),
    pytest.param(MANY, "cuda", id="large", marks=pytest.mark.gpu),
]
ON = pytest.mark.parametrize(("many", "device"), SIZES)
_GROUP = 128
ON_REFERENCE = ("int8_dynamic_int4_linear", "int8_dynamic_intx_linear")  # on GPUs


def weight(name: str, lead: tuple[int, ...], K: int, device: str) -> dict[str, Any]:
    """The arguments of an op between x and bias (or offsets), by parameter."""
    names = [argument.name for argument in OPS[name].schema.arguments]
    bits = 3 if "bits" in names else 4
    packed = "zero" in names
    if packed:
        shape = (*lead, K // 8 * bits)
        codes = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    elif name.startswith("float8"):
        codes = torch.randint(0, 112, (*lead, K), dtype=torch.uint8, device=device)
        codes = codes.view(torch.float8_e4m3fn)
    else:
        codes = torch.randint(-127, 128, (*lead, K), dtype=torch.int8, device=device)
    groups = K // _GROUP if packed else 1
    scale = torch.rand(*lead, groups, device=device) + 0.1
    given = {"codes": codes, "scale": scale.bfloat16() if packed else scale, "zero": None}
    given |= {"bits": bits, "group_size": _GROUP if packed else K, "activation": "row"}
    given |= {"block_n": 1, "block_k": K, "x_scale": torch.full((1, 1), 0.04, device=device)}
    return {name: given[name] for name in names if name in given}


def check(name: str, M: int, N: int, K: int, device: str) -> None:
    """The last rows and columns, which other elements than those at their 32-bit addresses make."""
    op, given = OPS[name], weight(name, (N,), K, device)
    x = torch.randn(M, K, device=device, dtype=torch.bfloat16)
    y = op(x, *given.values())
    assert y.shape == (M, N)
    rows, columns = min(M, 5), min(N, 7)
    of_rows = {key: given[key][-columns:] for key in ("codes", "scale")}
    expected = op.reference(x[-rows:].double(), *(given | of_rows).values())
    found = y[-rows:, -columns:].double()
    assert (found - expected).norm() <= 0.01 * expected.norm()


@pytest.mark.parametrize("name", LINEARS)
@ON
def test_weights(name: str, many: int, device: str) -> None:
    K = 4096 if device == "cuda" else 128
    for M in (1, 64):
        check(name, M, many // K + 300, K, device)
    packed = "zero" in [argument.name for argument in OPS[name].schema.arguments]
    if packed and device == "cuda" and name not in ON_REFERENCE:  # that takes 75 GB
        check(name, 1, 8 * many // (3 * K) + 300, K, device)  # as many bytes


@pytest.mark.parametrize("name", LINEARS)
@ON
def test_activations(name: str, many: int, device: str) -> None:
    K = 4096 if device == "cuda" else 128
    check(name, many // K + 300, 64, K, device)


@pytest.mark.parametrize("name", LINEARS)
@ON
def test_results(name: str, many: int, device: str) -> None:
    M = 32768 if device == "cuda" else 128
    check(name, M, many // M + 300, 256, device)


@pytest.mark.parametrize("name", GROUPED)
@ON
def test_experts(name: str, many: int, device: str) -> None:
    """The last expert has all tokens."""
    K, N = (4096, 4096) if device == "cuda" else (128, 64)
    E = many // (N * K) + 2
    op, given = OPS[name], weight(name, (E, N), K, device)
    for T in (3, 64):
        x = torch.randn(T, K, device=device, dtype=torch.bfloat16)
        offsets = torch.tensor([0] * (E - 1) + [T], dtype=torch.int32, device=device)
        y = op(x, *given.values(), offsets)
        last = {key: given[key][-1:] for key in ("codes", "scale")}
        expected = op.reference(x.double(), *(given | last).values(), offsets[-1:])
        assert (y.double() - expected).norm() <= 0.01 * expected.norm()


@ON
def test_blocks(many: int, device: str) -> None:
    K = 4096 if device == "cuda" else 256
    x = torch.zeros(many // K + 256, K, device=device, dtype=torch.bfloat16)
    x[-128:] = torch.randn(128, K, device=device)
    codes, scale = quantize_block(x, torch.float8_e4m3fn, 128, 128)
    expected_codes, expected_scale = quantize_block(x[-128:], torch.float8_e4m3fn, 128, 128)
    same_codes: Tensor = codes[-128:].view(torch.uint8) == expected_codes.view(torch.uint8)
    assert same_codes.all() and torch.equal(scale[-1:], expected_scale)


@pytest.mark.gpu
@pytest.mark.parametrize("name", LINEARS)
def test_memory_beside_the_result_is_bounded(name: str) -> None:
    """By a weight of two bytes, the codes of the activations, and parts of the sums of some tens of
    tokens; nothing of it stays."""
    N, K = 4096, 2048
    given = weight(name, (N,), K, "cuda")
    if name in ON_REFERENCE:
        pytest.skip("the reference, which holds the weight in float32")
    for M in (1, 16, 17, 100, 1000, 5000):
        x = torch.randn(M, K, device="cuda", dtype=torch.bfloat16)
        OPS[name](x, *given.values())  # compiles, and what libraries keep
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        y = OPS[name](x, *given.values())
        beside = torch.cuda.max_memory_allocated() - before - y.nbytes
        assert torch.cuda.memory_allocated() - before <= y.nbytes + 512
        assert beside <= 2 * N * K + 2 * M * K + 64 * min(M, 256) * N + 2**20, M
