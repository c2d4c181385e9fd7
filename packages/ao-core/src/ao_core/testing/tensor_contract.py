"""QTensorContract: what every quantized tensor must do. A format's test class inherits it and says
how to make one.

    class TestInt8(QTensorContract):
        min_sqnr_db = 40

        def make(self, w):
            return Int8Tensor.from_float(w)

Every check compares with the dequantized weight, bit for bit unless a sum is reordered.
"""

import copy
import io
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ao_core.errors import UnsupportedOpError
from ao_core.tensor import QTensor

__all__ = ["QTensorContract"]

SHAPES = ((64, 128), (33, 128), (16, 200), (1, 64), (7, 50))
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-10}


def weight(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Reproducible normal values."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def sqnr_db(exact: Tensor, got: Tensor) -> float:
    """Signal to quantization noise, in decibels."""
    exact, got = exact.double(), got.double()
    return float(20 * torch.log10(exact.norm() / (exact - got).norm()))


def same(a: Any, b: Any) -> bool:
    """Equal formats, metadata, fields and bits."""
    return type(a) is type(b) and torch.equal(a, b) and a.dtype == b.dtype


class QTensorContract:
    """Subclass, set `min_sqnr_db`, define `make`. `cut` is a multiple of every block along K;
    `dynamic` formats quantize activations, so their products are compared by SQNR (`min_linear_db`)
    instead of by rounding bounds."""

    min_sqnr_db: ClassVar[float]
    min_linear_db: ClassVar[float] = 30
    cut: ClassVar[int] = 64
    dynamic: ClassVar[bool] = False

    def make(self, w: Tensor) -> QTensor:
        raise NotImplementedError

    # --- values

    @pytest.mark.parametrize("shape", SHAPES)
    def test_values_are_close(self, shape: tuple[int, ...]) -> None:
        w = weight(*shape)
        q = self.make(w)
        assert q.shape == w.shape and q.dtype == w.dtype and q.dequantize().shape == w.shape
        assert sqnr_db(w, q.dequantize()) >= self.min_sqnr_db

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_dtype_is_kept(self, dtype: torch.dtype) -> None:
        q = self.make(weight(16, 64, dtype=dtype))
        assert q.dtype == dtype and q.dequantize().dtype == dtype

    def test_zeros_are_zeros(self) -> None:
        q = self.make(torch.zeros(8, 64))
        assert torch.equal(q.dequantize(), torch.zeros(8, 64))

    def test_same_weight_same_bits(self) -> None:
        assert same(self.make(weight(16, 128)), self.make(weight(16, 128)))

    # --- products

    @pytest.mark.parametrize("dtype", list(TOLERANCE))
    @pytest.mark.parametrize("tokens", [(), (1,), (5,), (2, 3), (0,)])
    def test_linear(self, tokens: tuple[int, ...], dtype: torch.dtype) -> None:
        q, bias = self.make(weight(33, 128, dtype=dtype)), weight(33, dtype=dtype, seed=1)
        x = weight(*tokens, 128, dtype=dtype, seed=2)
        y = F.linear(x, q, bias)
        assert y.shape == (*tokens, 33) and y.dtype == dtype
        self.check_product(y, x, q, bias)
        assert torch.equal(F.linear(x, q), F.linear(x, q, None))

    def test_linear_of_strided_activations(self) -> None:
        q, x = self.make(weight(16, 64)), weight(64, 5).t()
        self.check_product(F.linear(x, q), x, q, None)
        torch.testing.assert_close(F.linear(x, q), F.linear(x.contiguous(), q))

    def test_matmul_with_the_transposed_view(self) -> None:
        q, x = self.make(weight(16, 64)), weight(5, 64, seed=1)
        torch.testing.assert_close(x @ q.t(), F.linear(x, q))

    def check_product(self, y: Tensor, x: Tensor, q: QTensor, bias: Tensor | None) -> None:
        w = q.dequantize() if q.dtype == torch.float32 else self.exact(q)
        exact = x.double() @ w.double().T + (0 if bias is None else bias.double())
        if not y.numel():
            return
        if self.dynamic:
            assert sqnr_db(exact, y) >= self.min_linear_db
            return
        bound = x.double().abs() @ w.double().abs().T + (0 if bias is None else bias.double().abs())
        limit = TOLERANCE[y.dtype] * exact.abs() + 1e-5 * bound
        assert ((y.double() - exact).abs() <= limit).all()

    @staticmethod
    def exact(q: QTensor) -> Tensor:
        """The weight in float32: products do not round it to the model's dtype."""
        return q.to(torch.float32).dequantize()

    def test_gradient_of_activations(self) -> None:
        q, bias = self.make(weight(16, 64)), weight(16, seed=1).requires_grad_()
        x = weight(5, 64, seed=2).requires_grad_()
        g = weight(5, 16, seed=3)
        F.linear(x, q, bias).backward(g)
        assert x.grad is not None and bias.grad is not None
        torch.testing.assert_close(x.grad, g @ q.dequantize(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(bias.grad, g.sum(0))

    def test_low_rank_adapter_trains(self) -> None:
        """LoRA in front of and beside a quantized weight gets gradients."""
        q, x = nn.Parameter(self.make(weight(16, 64)), requires_grad=False), weight(5, 64, seed=2)
        a, b = weight(4, 64, seed=3).requires_grad_(), weight(16, 4, seed=4).requires_grad_()
        first = weight(64, 64, seed=5).requires_grad_()
        h = x @ first
        (F.linear(h, q) + h @ a.T @ b.T).square().sum().backward()
        for p in (a, b, first):
            assert p.grad is not None and p.grad.abs().sum() > 0
        assert q.grad is None

    # --- copies

    def test_copies_keep_every_bit(self) -> None:
        q = self.make(weight(16, 128))
        for other in (
            q.detach(),
            q.clone(),
            q.cpu(),
            q.to("cpu", copy=True),
            q.contiguous(),
            copy.deepcopy(q),
            copy.copy(q),
        ):
            assert same(q, other)
        assert all(
            q.clone().tensors()[k].data_ptr() != t.data_ptr() for k, t in q.tensors().items()
        )
        assert all(
            q.detach().tensors()[k].data_ptr() == t.data_ptr() for k, t in q.tensors().items()
        )
        assert q.data_ptr() == q.detach().data_ptr() != q.clone().data_ptr()

    def test_to_dtype_changes_what_it_stands_for(self) -> None:
        q = self.make(weight(16, 64))
        h = q.to(torch.bfloat16)
        assert h.dtype == torch.bfloat16 and h.dequantize().dtype == torch.bfloat16
        assert all(torch.equal(t, q.tensors()[k]) for k, t in h.tensors().items())
        with pytest.raises(TypeError, match="dequantize"):
            q.to(torch.int32)

    def test_pickle_with_weights_only(self) -> None:
        q, stream = self.make(weight(16, 64)), io.BytesIO()
        torch.save({"w": nn.Parameter(q, requires_grad=False), "q": q}, stream)
        stream.seek(0)
        loaded = torch.load(stream, weights_only=True)
        assert same(loaded["q"], q) and isinstance(loaded["w"], nn.Parameter)

    def test_copy_into(self) -> None:
        q, other = self.make(weight(16, 64)), self.make(weight(16, 64, seed=1))
        before = {k: t.data_ptr() for k, t in q.tensors().items()}
        q.copy_(other)
        assert same(q, other) and before == {k: t.data_ptr() for k, t in q.tensors().items()}
        with pytest.raises(ValueError, match="formats differ"):
            q.copy_(self.make(weight(8, 64)))

    def test_update_in_place(self) -> None:
        q, w = self.make(weight(16, 64)), weight(16, 64, seed=7)
        before = {k: t.data_ptr() for k, t in q.tensors().items()}
        assert q.update_(w) is q
        assert same(q, self.make(w)) and same(q.requantize(w), q)
        assert before == {k: t.data_ptr() for k, t in q.tensors().items()}
        with pytest.raises(ValueError, match="shape"):
            q.update_(weight(8, 64))

    def test_data_assignment(self) -> None:
        p = nn.Parameter(self.make(weight(16, 64)), requires_grad=False)
        new = self.make(weight(16, 64, seed=1))
        p.data = new
        assert same(p.detach(), new) and isinstance(p, nn.Parameter)
        assert torch.equal(p.data.dequantize(), new.dequantize())

    def test_in_a_module(self) -> None:
        module = nn.Linear(64, 16)
        module.weight = nn.Parameter(self.make(module.weight.detach()), requires_grad=False)
        x, y = weight(3, 64), module(weight(3, 64))
        twin = copy.deepcopy(module)
        assert torch.equal(twin(x), y) and isinstance(twin.weight, nn.Parameter)
        target = nn.Linear(64, 16)
        target.load_state_dict(module.state_dict(), assign=True)
        assert torch.equal(target(x), y)
        other = copy.deepcopy(module)
        with torch.no_grad():
            other.weight.update_(weight(16, 64))
        other.load_state_dict(module.state_dict())
        assert torch.equal(other(x), y)
        half = copy.deepcopy(module).to(torch.bfloat16)
        assert half(x.bfloat16()).dtype == torch.bfloat16 and half.weight.dtype == torch.bfloat16
        moved = copy.deepcopy(module).to("meta")
        assert moved.weight.device.type == "meta" and type(moved.weight) is type(module.weight)
        assert (
            "dtype" in repr(module.weight)
            and sum(t.nbytes for t in module.weight.tensors().values()) == module.weight.nbytes
        )

    # --- views

    def test_row_views(self) -> None:
        q = self.make(weight(48, 128))
        w = q.dequantize()
        assert torch.equal(q[8:24].dequantize(), w[8:24])
        assert torch.equal(q[-8:].dequantize(), w[-8:]) and torch.equal(
            q[40:99].dequantize(), w[40:99]
        )
        assert torch.equal(q.narrow(0, 3, 5).dequantize(), w.narrow(0, 3, 5))
        assert [p.shape[0] for p in q.split(20)] == [20, 20, 8]
        for ours, exact in zip(q.chunk(3), w.chunk(3), strict=True):
            assert torch.equal(ours.dequantize(), exact)
        for ours, exact in zip(q.split([8, 40]), w.split([8, 40]), strict=True):
            assert torch.equal(ours.dequantize(), exact)
        assert same(torch.cat(q.chunk(3)), q)
        index = torch.tensor([5, 0, 47])
        assert torch.equal(q.index_select(0, index).dequantize(), w.index_select(0, index))
        assert q[5:5].shape == (0, 128)

    def test_column_views(self) -> None:
        q, n = self.make(weight(16, 4 * self.cut)), self.cut
        w = q.dequantize()
        for start, stop in ((0, n), (n, 3 * n), (3 * n, 4 * n), (0, 4 * n)):
            assert torch.equal(q[:, start:stop].dequantize(), w[:, start:stop])
        assert same(torch.cat(q.chunk(4, dim=1), dim=1), q)
        x = weight(3, n)
        y = F.linear(x, q[:, n : 2 * n])
        assert torch.equal(y, F.linear(x, q[:, n : 2 * n].clone()))

    def test_views_share_storage(self) -> None:
        q = self.make(weight(16, 128))
        q[4:8].update_(weight(4, 128, seed=9))
        assert torch.equal(q[4:8].dequantize(), self.make(weight(4, 128, seed=9)).dequantize())

    def test_transposed_view(self) -> None:
        q = self.make(weight(16, 64))
        w = q.dequantize()
        for ours in (q.t(), q.T, q.mT, q.transpose(0, 1), q.permute(1, 0)):
            assert (
                ours.shape == (64, 16)
                and torch.equal(ours.dequantize(), w.t())
                and ours.stride() == w.t().stride()
            )
        assert same(q.t().t(), q)
        assert torch.equal(q.t()[:, 4:8].dequantize(), w.t()[:, 4:8])

    def test_shape_views(self) -> None:
        q = self.make(weight(16, 64))
        assert same(q.view(16, 64), q) and same(q.view(-1, 64), q)
        assert q.unsqueeze(0).shape == (1, 16, 64)
        assert torch.equal(q.unsqueeze(0).dequantize(), q.dequantize().unsqueeze(0))
        assert same(q.unsqueeze(0).squeeze(0), q) and same(q.unsqueeze(0)[0], q)

    def test_experts(self) -> None:
        w = weight(3, 16, 64)
        q = self.make(w)
        assert q.shape == (3, 16, 64) and sqnr_db(w, q.dequantize()) >= self.min_sqnr_db
        assert torch.equal(q[1].dequantize(), q.dequantize()[1])
        assert torch.equal(q[1:].dequantize(), q.dequantize()[1:])
        assert torch.equal(q[:, 4:8].dequantize(), q.dequantize()[:, 4:8])
        x = weight(5, 64, seed=1)
        torch.testing.assert_close(x @ q.mT[2], F.linear(x, q[2]))
        torch.testing.assert_close(torch.bmm(x.expand(3, 5, 64), q.mT)[2], F.linear(x, q[2]))
        torch.testing.assert_close(torch.bmm(q, x.mT.expand(3, 64, 5))[2], F.linear(x, q[2]).mT)
        ids = torch.tensor([2, 0, 2, 1])
        assert torch.equal(q[ids].dequantize(), q.dequantize()[ids])
        assert torch.equal(q.mT[ids].dequantize(), q.dequantize().mT[ids])
        with pytest.raises(UnsupportedOpError, match="dequantize"):
            q[torch.tensor([True, False, True])]

    def test_undefined_op_says_the_way_out(self) -> None:
        q = self.make(weight(16, 64))
        for attempt in (
            lambda: q + 1,
            lambda: q * q,
            lambda: q.sum(),
            lambda: torch.relu(q),
            lambda: q @ q.t().contiguous(),
        ):
            with pytest.raises(UnsupportedOpError, match="dequantize"):
                attempt()
        with pytest.raises(UnsupportedOpError, match="step"):
            q[::2]
        with pytest.raises(TypeError, match=r"checkpoint\.save"):
            q.storage()

    # --- compiler

    def test_flatten_round_trip(self) -> None:
        q = self.make(weight(16, 64))
        names, context = q.__tensor_flatten__()
        inner = {name: getattr(q, name) for name in names}
        assert same(type(q).__tensor_unflatten__(inner, context, q.shape, q.stride()), q)
        assert (
            q._stable_hash_for_caching()
            == self.make(weight(16, 64, seed=1))._stable_hash_for_caching()
        )
        assert q._stable_hash_for_caching() != q.t()._stable_hash_for_caching()

    def test_compile_equals_eager(self) -> None:
        torch._dynamo.reset()
        module = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16, bias=False))
        for layer in (module[0], module[2]):
            layer.weight = nn.Parameter(self.make(layer.weight.detach()), requires_grad=False)
        compiled, x = torch.compile(module, fullgraph=True), weight(5, 64)
        assert torch.equal(compiled(x), module(x))
        with torch.inference_mode():
            assert torch.equal(compiled(x), module(x))

    def test_compile_with_gradient(self) -> None:
        torch._dynamo.reset()
        q = nn.Parameter(self.make(weight(16, 64)), requires_grad=False)
        first = nn.Linear(64, 64)
        loss = lambda x: F.linear(first(x), q).square().sum()  # noqa: E731
        x = weight(5, 64)
        loss(x).backward()
        eager, first.weight.grad = first.weight.grad, None
        torch.compile(loss, fullgraph=True)(x).backward()
        torch.testing.assert_close(first.weight.grad, eager, rtol=1e-4, atol=1e-4)

    def test_export(self) -> None:
        module = nn.Sequential(nn.Linear(64, 32), nn.ReLU())
        module[0].weight = nn.Parameter(self.make(module[0].weight.detach()), requires_grad=False)
        x = weight(5, 64)
        program = torch.export.export(module.eval(), (x,))
        assert torch.equal(program.module()(x), module(x))

    def test_inference_mode(self) -> None:
        q, x = self.make(weight(16, 64)), weight(3, 64)
        expected = F.linear(x, q)
        with torch.inference_mode():
            assert torch.equal(F.linear(x, q), expected)
            fresh = self.make(weight(16, 64))
            assert torch.equal(F.linear(x, fresh[:8]), F.linear(x, q[:8]))
