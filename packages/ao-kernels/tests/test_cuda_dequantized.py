"""cuda/dequantized.py on a GPU: the weight that the kernel writes, and the product with it."""

from __future__ import annotations

import pytest
import torch
from weight_samples import weights


@pytest.mark.gpu
class TestOnGpu:
    @pytest.fixture(autouse=True)
    def _seed(self) -> None:
        torch.manual_seed(0)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
    @pytest.mark.parametrize("shape", [(1000, 600), (33, 1001), (64, 4096), (7, 8)], ids=str)
    def test_dequantized_weights_are_exact(
        self, shape: tuple[int, int], dtype: torch.dtype
    ) -> None:
        """Rounded once; codes also at addresses of 4 * n."""
        from ao_kernels import _cuda

        N, K = shape
        like = torch.empty(0, K, dtype=dtype, device="cuda")
        for name, weight in weights(N, K):
            on_gpu = weight.to("cuda")
            found = _cuda.dequantize(like, *on_gpu[:6])
            assert torch.equal(found, on_gpu.expected.to(dtype)), name
            moved = torch.empty(on_gpu.codes.numel() + 4, dtype=torch.uint8, device="cuda")[4:]
            moved = moved.view(on_gpu.codes.dtype).view(on_gpu.codes.shape).copy_(on_gpu.codes)
            assert torch.equal(_cuda.dequantize(like, moved, *on_gpu[1:6]), found), name

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
    def test_every_kind_of_weight(
        self, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One rounding to the dtype of x, and sums in float32, whose 600 roundings were up to SUMS
        of its eps of the magnitude where they were simulated; TF32 would be off by hundreds."""
        from ao_kernels.cuda import dequantized

        monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
        sums = _SUMS * torch.finfo(torch.float32).eps
        for name, weight in weights(1000, 600):
            on_gpu = weight.to("cuda")
            x = torch.randn(3, 100, 600, device="cuda").to(dtype)
            codes, scale, zero, bits, group_size, block_n, expected = on_gpu
            y = dequantized.linear(x, codes, scale, zero, bits, group_size, None, block_n)
            w = expected.to(dtype).double()
            apart = (y.double() - x.double() @ w.T).abs()
            most = (torch.finfo(dtype).eps + sums) * (x.double().abs() @ w.abs().T)
            assert y.dtype == dtype and y.shape == (3, 100, 1000)
            assert (apart <= most).all(), (name, (apart / most).max().item())


_SUMS = 8
