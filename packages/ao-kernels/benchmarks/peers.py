"""Linears of other libraries beside ours on a GPU: torch's tinygemm, torchao, gemlite, FBGEMM and
bitsandbytes, each where it can be imported.

A peer quantizes the weight (N, K) its own way, N output features, K input features, M tokens, and
gives a call. Before it is timed, its result is compared with that of the weight before
quantization, and it must run in a CUDA graph, as all sides do. Why one is left out is printed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from report import check_close
from torch import Tensor, nn
from torch.nn.functional import linear

Call = Callable[[Tensor], Tensor]
GROUP = 128


@dataclass(frozen=True)
class Peer:
    """One library's linear of one format.

    make         (weight_NK) -> call(x_MK)
    tolerance    relative error against the weight before quantization: of normal weights and x
    most_tokens  beyond it a call takes milliseconds
    """

    make: Callable[[Tensor], Call]
    tolerance: float
    most_tokens: int | None = None


class Peers:
    """The libraries of ``names`` that have ``what`` (a key of PEERS), ready for these weights."""

    def __init__(self, what: str, names: str, weights: Sequence[Tensor]) -> None:
        torch._dynamo.config.recompile_limit = 1000  # of one code object: sizes and formats
        self._expected, self._calls = weights[0], dict[str, list[Call]]()
        self._peers = {n: PEERS[n][what] for n in _split(names) if what in PEERS[n]}
        for name, peer in self._peers.items():
            try:
                self._calls[name] = [peer.make(weight) for weight in weights]
            except Exception as error:  # whatever a library raises, it is absent
                self._say(name, error)

    def sides(self, x: Tensor) -> dict[str, list[Callable[[], object]]]:
        """The calls on x of those that take it, give what they should and can be captured."""
        found: dict[str, list[Callable[[], object]]] = {}
        for name, calls in self._calls.items():
            peer, bound = self._peers[name], [partial(call, x) for call in calls]
            try:
                if peer.most_tokens is not None and len(x) > peer.most_tokens:
                    raise ValueError(f"not timed with more than {peer.most_tokens} tokens")
                expected = linear(x.float(), self._expected.float())
                check_close(name, calls[0](x), expected, peer.tolerance)
                _try_graph(bound[0])
            except Exception as error:  # the other sides are timed nevertheless
                self._say(f"{name}, {len(x)} tokens", error)
            else:
                found[name] = bound
        return found

    @staticmethod
    def _say(name: str, error: Exception) -> None:
        reason = str(error).strip().splitlines() or ["no message"]
        print(f"{name}: left out: {type(error).__name__}: {reason[0]}", flush=True)


def add_option(parser: argparse.ArgumentParser) -> None:
    """``--peers``."""
    names = ",".join(PEERS)
    parser.add_argument("--peers", default=names, help=f"{names}, those installed; '' for none")


def _split(names: str) -> list[str]:
    chosen = [name for name in names.split(",") if name]
    unknown = sorted(set(chosen) - set(PEERS))
    if unknown:
        raise SystemExit(f"no peer is called {', '.join(unknown)}; there are {', '.join(PEERS)}")
    return chosen


def _try_graph(call: Callable[[], object]) -> None:
    torch.cuda.synchronize()
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        call()


def _int4_codes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes 0 to 15 as (N, K) uint8 and the scale (N, K / GROUP) of (code - 8)."""
    groups = weight.unflatten(1, (-1, GROUP)).float()
    scale = (groups.abs().amax(-1, keepdim=True) / 7).bfloat16()
    codes = (groups / scale.float()).round().clamp(-8, 7) + 8
    return codes.flatten(1).to(torch.uint8), scale.squeeze(-1)


def _tinygemm(weight: Tensor) -> Call:
    codes, scale = _int4_codes(weight)
    packed = torch.ops.aten._convert_weight_to_int4pack(codes[:, ::2] << 4 | codes[:, 1::2], 8)
    scale_offset = torch.stack((scale.T, torch.zeros_like(scale.T)), -1).contiguous()
    return lambda x: torch.ops.aten._weight_int4pack_mm(x, packed, GROUP, scale_offset)


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    return linear(x, weight)


def _torchao(config: str, weight: Tensor, **settings: Any) -> Call:
    """Compiled, as torchao advises, with the settings of Inductor that it chooses: they hold for
    the whole process, in which nothing else is compiled."""
    from torchao import quantization

    if "granularity" in settings:
        settings["granularity"] = getattr(quantization, settings["granularity"])()
    module = nn.Linear(*reversed(weight.shape), bias=False, device="meta")
    module.weight = nn.Parameter(weight.clone(), requires_grad=False)
    quantization.quantize_(module, getattr(quantization, config)(**settings))
    compiled, quantized = torch.compile(_linear, dynamic=False), module.weight
    return lambda x: compiled(x, quantized)


def _gemlite_int4(weight: Tensor) -> Call:
    from gemlite.helper import A16Wn

    codes, scale = _int4_codes(weight)
    processor = A16Wn(device=str(weight.device), dtype=weight.dtype)
    return processor.from_weights(codes, scale, torch.full_like(scale, 8), 4, GROUP)


def _gemlite(processor: str, weight: Tensor) -> Call:
    from gemlite import helper

    made = getattr(helper, processor)(device=str(weight.device), dtype=weight.dtype)
    return made.from_weights(weight)


def _fbgemm_int4(weight: Tensor) -> Call:
    from fbgemm_gpu.experimental.gen_ai.quantize import quantize_int4_preshuffle

    codes, (scale, zero) = quantize_int4_preshuffle(weight, GROUP, dtype="bf16")
    return lambda x: torch.ops.fbgemm.bf16i4bf16_shuffled(x, codes, scale, zero)


def _fbgemm_float8(weight: Tensor) -> Call:
    import fbgemm_gpu.experimental.gen_ai  # noqa: F401  registers the ops

    ops = torch.ops.fbgemm
    codes, scale = ops.quantize_fp8_per_row(weight)

    def call(x: Tensor) -> Tensor:
        x_codes, x_scale = ops.quantize_fp8_per_row(x)
        return ops.f8f8bf16_rowwise(x_codes, codes, x_scale, scale)

    return call


def _bitsandbytes_nf4(weight: Tensor) -> Call:
    """NF4 in blocks of 64: its 4-bit format for inference."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    module = Linear4bit(*reversed(weight.shape), bias=False, compute_dtype=weight.dtype)
    module.weight = Params4bit(
        weight.clone(),
        requires_grad=False,
        compress_statistics=False,
        quant_type="nf4",
        module=module,
    )
    return module.to(weight.device)


def _bitsandbytes_int8(weight: Tensor) -> Call:
    """LLM.int8() without outlier columns; it computes in float16."""
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    module = Linear8bitLt(*reversed(weight.shape), bias=False, has_fp16_weights=False)
    module.weight = Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False)
    return module.to(weight.device).eval()


_FLOAT8 = "Float8DynamicActivationFloat8WeightConfig"
_INT4 = partial(_torchao, "Int4WeightOnlyConfig", int4_packing_format="tile_packed_to_4d")
PEERS: dict[str, dict[str, Peer]] = {
    "tinygemm": {"int4": Peer(_tinygemm, 0.2, most_tokens=256)},
    "torchao": {
        "int4": Peer(_INT4, 0.2, most_tokens=256),
        "int8": Peer(partial(_torchao, "Int8WeightOnlyConfig"), 0.03, most_tokens=16),
        "int8 dynamic": Peer(partial(_torchao, "Int8DynamicActivationInt8WeightConfig"), 0.05),
        "float8": Peer(partial(_torchao, "Float8WeightOnlyConfig"), 0.05),
        "float8 dynamic row": Peer(partial(_torchao, _FLOAT8, granularity="PerRow"), 0.06),
        "float8 dynamic tensor": Peer(partial(_torchao, _FLOAT8, granularity="PerTensor"), 0.06),
    },
    "gemlite": {
        "int4": Peer(_gemlite_int4, 0.2),
        "int8": Peer(partial(_gemlite, "A16W8_INT8"), 0.03),
        "int8 dynamic": Peer(partial(_gemlite, "A8W8_int8_dynamic"), 0.05),
        "float8": Peer(partial(_gemlite, "A16W8_FP8"), 0.05),
        "float8 dynamic row": Peer(partial(_gemlite, "A8W8_fp8_dynamic"), 0.06),
    },
    "fbgemm": {
        "int4": Peer(_fbgemm_int4, 0.2),
        "float8 dynamic row": Peer(_fbgemm_float8, 0.06),
    },
    "bitsandbytes": {
        "int4": Peer(_bitsandbytes_nf4, 0.2),
        "int8 dynamic": Peer(_bitsandbytes_int8, 0.06),
    },
}
