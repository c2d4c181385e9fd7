"""float8_linear in Triton: interpreted, compiled for absent GPUs, and on a GPU."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from float8_samples import WHOLE, float8_call, large_float8, magnitude_float8, sample_float8
from gpu_contract import OnGpu
from torch import Tensor
from triton_compilation import ARCHITECTURES, compiled_launches
from triton_contract import Interpreted

from ao_core.testing.op_contract import Sample
from ao_kernels.ops import float8_linear


def _samples(dtype: torch.dtype) -> Iterator[Sample]:
    for name, *args in sample_float8(dtype):
        yield Sample(name, tuple(args))


class Float8Linear:
    """The op, and the checks that are alike in the interpreter and on a GPU."""

    op = float8_linear
    device = "cpu"

    def magnitude(self, args: tuple[Any, ...]) -> Tensor:
        return magnitude_float8(*args)

    def bound(self, args: tuple[Any, ...], expected: Tensor) -> Tensor:
        """Weights that are dequantized first are rounded."""
        bound = super().bound(args, expected)
        x, bias = args[0], args[-1]
        plain = bias is None or bias.dtype == torch.bfloat16
        if x.dtype == torch.bfloat16 and plain and x.numel() > 512 * x.shape[-1]:
            bound += torch.finfo(torch.bfloat16).eps * self.magnitude(args)
        return bound

    @pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
    @pytest.mark.parametrize("M", [3, 129])
    def test_every_code(self, kind: torch.dtype, M: int) -> None:
        codes = torch.arange(256).to(torch.uint8).view(kind)[:, None].repeat(1, 32)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            x = torch.zeros(M, 32, dtype=dtype)
            x[:, 5] = 1.0
            y = self.result(x, codes, torch.ones(1, 1), 256, 32)
            expected = codes[:, 5].float()
            finite = expected.isfinite()
            assert torch.equal(y[:, finite], expected[finite].to(dtype).expand(M, -1))
            assert not y[:, ~finite].isfinite().any()

    def test_nan_scales_stay_in_their_block(self) -> None:
        x, codes, scale, *others = float8_call(3, 64, 256, 32, 128, torch.float32)
        scale[1, 1] = torch.nan
        y = self.result(x, codes, scale, *others)
        assert y[:, 32:].isnan().all() and y[:, :32].isfinite().all()

    @pytest.mark.parametrize("block", [(1, WHOLE), (32, 64)])
    def test_weights_that_are_dequantized_first(self, block: tuple[int, int]) -> None:
        x, codes, *others = float8_call(513, 40, 96, *block, torch.bfloat16, bias=torch.bfloat16)
        args = tuple(a.to(self.device) if isinstance(a, Tensor) else a for a in (x, codes, *others))
        why_not = float8_linear.why_not(*args)
        assert "triton:library" not in why_not and "triton" not in why_not
        expected = float8_linear.reference(x.double(), codes, *others)
        bound = self.bound((x, codes, *others), expected)
        for kernel in float8_linear.kernels:
            if kernel.backend == "triton":
                y = kernel.run(*args).cpu().double()
                assert ((y - expected).abs() <= bound).all(), kernel.name
        few = float8_linear.why_not(args[0][:512], *args[1:])
        assert few["triton:library"] == (
            "x has 512 tokens; weights are dequantized for more than 512"
        )

    def result(self, *args: Any) -> Tensor:
        given = (a.to(self.device) if isinstance(a, Tensor) else a for a in args)
        return float8_linear(*given).cpu()


@pytest.mark.interpreted
class TestInterpreted(Float8Linear, Interpreted):
    def samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        yield from _samples(dtype)


@pytest.mark.gpu
class TestOnGpu(Float8Linear, OnGpu):
    device = "cuda"
    backend, forced = "triton", True

    def cpu_samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        yield from _samples(dtype)

    def large(self, dtype: torch.dtype) -> Iterator[Sample]:
        for name, args in large_float8(dtype):
            yield Sample(name, args)


@pytest.mark.triton
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiles_for(architecture: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [float8_call(M, 256, 1024, 1, WHOLE, torch.bfloat16) for M in (1, 32, 256)]
    calls += [float8_call(M, 256, 1024, 128, 128, torch.float32) for M in (1, 40)]
    calls.append(float8_call(100, 99, 500, 1, 40, torch.float16, kind=torch.float8_e5m2))
    launches = list(compiled_launches("float8_linear", calls, architecture, monkeypatch))
    assert {launch.name for launch in launches} == {"_float8_product", "_finish"}
    many = [float8_call(600, 64, 1024, 128, 128, torch.bfloat16)]
    launches += compiled_launches(
        "float8_linear", many, architecture, monkeypatch, run="_run_library"
    )
    assert launches[-1].name == "_dequantize"
    for launch in launches:
        assert launch.shared_bytes <= 99 << 10, f"{launch.name} fits no consumer GPU"
