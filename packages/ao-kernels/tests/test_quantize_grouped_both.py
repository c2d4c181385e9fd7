"""quantize_grouped_both: the Triton kernels against the reference, interpreted and on a GPU. What
the reference gives is tested in test_float8_grouped_matmul.py."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from both_contract import Forced
from matmul_samples import E4M3, E5M2
from quantize_contract import moved
from quantized_samples import assert_same_bits
from torch import Tensor

from ao_kernels.ops import quantize_grouped_both

# M, K and the ends of the experts' tokens
CASES: list[tuple[int, int, list[int]]] = [
    (1, 1, [1]),
    (1, 16, [0, 0, 1]),
    (17, 24, [0, 0]),  # no token of an expert
    (257, 64, [257]),
    (258, 129, [128, 255]),  # rows behind the last end, in the last rows of 16
    (290, 72, [33, 200]),
    (40, 130, [0, 32, 64]),  # ends behind the rows
    (140, 16, [*range(129), 131]),
]
BOTH = [(E4M3, False, "both"), (E5M2, True, "both"), (E4M3, True, "columns"), (E5M2, False, "rows")]


def tokens(M: int, K: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(M, K, generator=generator) * torch.rand(M, 1, generator=generator)


class Bits:
    device = "cpu"

    def check(self, x: Tensor, ends: list[int], *others: Any) -> None:
        args = (x, others[0], torch.tensor(ends, dtype=torch.int32), *others[1:])
        found = quantize_grouped_both(*moved(args, self.device))
        name = f"{tuple(x.shape)} {x.dtype} {ends[:9]} {others}"
        assert_same_bits(name, found, quantize_grouped_both.reference(*args))

    def layouts(self, x: Tensor) -> Iterator[Tensor]:
        """x in every dtype and with strides."""
        yield x.bfloat16()
        yield x.T.contiguous().T
        yield torch.cat((x, x), 1).half()[:, 1 : 1 + x.shape[1]]

    def test_experts(self) -> None:
        for turn, (M, K, ends) in enumerate(CASES):
            x = tokens(M, K).bfloat16()
            some = [BOTH[0], BOTH[1 + turn % 3]] if len(ends) < 9 else []  # minutes, interpreted
            for others in BOTH if self.device == "cuda" else some:
                self.check(x, ends, *others)

    def test_dtypes_and_strides(self) -> None:
        for M, K, ends in CASES[3:6]:
            for x, others in zip(self.layouts(tokens(M, K)), BOTH, strict=False):
                self.check(x, ends, *others)

    @pytest.mark.parametrize("value", [torch.nan, -torch.inf])
    def test_odd_elements(self, value: float) -> None:
        """Rows and, in one expert, columns are NaN; behind the last end rows alone."""
        x = tokens(290, 72)
        for row, column in [(40, 3), (210, 70), (289, 0)]:
            x[row, column] = value
        for others in BOTH[:2]:
            self.check(x.bfloat16(), [33, 200, 280], *others)
        _, scale, codes, scale_t, ends = quantize_grouped_both(
            *moved((x, E4M3, torch.tensor([33, 200, 280], dtype=torch.int32)), self.device)
        )
        assert scale.isnan().flatten().nonzero().flatten().tolist() == [40, 210, 289]
        assert scale_t.isnan().nonzero().tolist() == [[1, 3], [2, 70]]
        assert ends.tolist() == [64, 256, 352]
        assert not codes[:, 352:].view(torch.uint8).any()

    def test_magnitudes(self) -> None:
        """Scales from the smallest to the largest, of rows and of columns."""
        x = tokens(150, 40) * torch.logspace(-44, 30, 150)[:, None]
        columns = (x.T.contiguous() * torch.logspace(-3, 3, 40)[:, None]).T
        for each in (x, x.bfloat16(), columns):
            self.check(each, [50, 150], *BOTH[0])


@pytest.mark.interpreted
class TestInterpreted(Bits, Forced):
    pass


@pytest.mark.gpu
class TestOnGpu(Bits):
    device = "cuda"

    @pytest.mark.parametrize(("M", "K", "E"), [(8192, 4096, 8), (5000, 1000, 256), (4096, 768, 1)])
    def test_sizes_of_models(self, M: int, K: int, E: int) -> None:
        chosen = torch.randint(E + 1, (M,), generator=torch.Generator().manual_seed(0))
        ends = torch.bincount(chosen, minlength=E + 1)[:E].cumsum(0).tolist()
        x = tokens(M, K).bfloat16()
        for others in BOTH:
            self.check(x, ends, *others)
            self.check(x, ends, *others)  # starts what the first call compiled

    def test_graphs_replay_on_other_offsets(self) -> None:
        x = tokens(512, 256).bfloat16().cuda()
        offsets = torch.tensor([100, 300, 512], dtype=torch.int32, device="cuda")
        quantize_grouped_both(x, E4M3, offsets)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = quantize_grouped_both(x, E4M3, offsets)
        for ends in ([0, 0, 512], [511, 512, 512], [7, 8, 90]):
            x.copy_(torch.randn_like(x))
            offsets.copy_(torch.tensor(ends))
            graph.replay()
            wanted = quantize_grouped_both.reference(x.cpu(), E4M3, offsets.cpu())
            assert_same_bits(f"{ends}", found, wanted)


@pytest.mark.gpu
class TestTritonOnGpu(Forced, TestOnGpu):
    """Where the CUDA extension would come first."""
