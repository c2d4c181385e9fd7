"""What each of two processes checks: tensor and sequence parallel against shards in one process."""

from __future__ import annotations

import torch
import torch.distributed as dist
from sharded_training import (
    FSDP_CHECKS,
    Counted,
    device,
    ordinary_reports,
    trained_by,
    values,
)
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import parallelize_module

from ao_float8 import Float8Linear, convert_to_float8_training
from ao_float8.tensor_parallel import (
    Float8ColwiseParallel,
    Float8RowwiseParallel,
    PrepareFloat8ModuleInput,
)

B, T, D, F = 2, 6, 32, 48


def same(found: Tensor, wanted: Tensor) -> bool:
    """Equal bits on CPUs; on GPUs products of other shapes add up in another order."""
    if device() == "cpu":
        return torch.equal(found, wanted)
    return bool((found.float() - wanted.float()).norm() <= 1e-2 * wanted.float().norm())


class Mlp(nn.Module):
    """Two layers that read one input, and one behind them."""

    def __init__(self, recipe: str, bias: bool = False, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate, self.up = nn.Linear(D, F, bias=bias), nn.Linear(D, F, bias=bias)
        self.down = nn.Linear(F, D, bias=bias)
        self.to(device(), dtype)
        convert_to_float8_training(
            self, config=trained_by(recipe), module_filter_fn=lambda module, name: True
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.gate(x)) * self.up(x))


def mesh() -> dist.device_mesh.DeviceMesh:
    return dist.device_mesh.init_device_mesh(device(), (2,))


def in_one_process(
    recipe: str, x: Tensor, dy: Tensor, bias: bool, dtype: torch.dtype
) -> tuple[list[Tensor], list[Tensor]]:
    """y and dx, and this rank's gradients, from the halves of every weight in turn."""
    whole = Mlp(recipe, bias, dtype)
    x = x.clone().requires_grad_()
    outputs, halves = [], []
    for rank in range(2):
        half = Mlp(recipe, False, dtype)
        for name, layer in half.named_children():
            dim = 1 if name == "down" else 0
            full = getattr(whole, name)
            layer.weight = nn.Parameter(full.weight.detach().chunk(2, dim)[rank].contiguous())
            if bias and name != "down":
                layer.bias = nn.Parameter(full.bias.detach().chunk(2)[rank].clone())
        halves.append(half)
        outputs.append(half(x))
    y = outputs[0] + outputs[1]
    if bias:
        y = y + whole.down.bias
    y.backward(dy)
    mine = halves[dist.get_rank()]
    return [y.detach(), x.grad], [layer.weight.grad for layer in mine.children()]


def parallel(recipe: str, how: str, bias: bool, dtype: torch.dtype) -> Mlp:
    sequence = how != "tensor"
    tokens = Shard(1) if sequence else Replicate()
    inputs = Replicate() if how == "prepared" else tokens
    plan = {
        "gate": Float8ColwiseParallel(input_layouts=inputs),
        "up": Float8ColwiseParallel(input_layouts=inputs),
        "down": Float8RowwiseParallel(output_layouts=tokens),
    }
    if how == "prepared":
        plan[""] = PrepareFloat8ModuleInput(input_layouts=tokens, desired_input_layouts=Replicate())
    return parallelize_module(Mlp(recipe, bias, dtype), mesh(), plan)


def run(model: Mlp, x: Tensor, dy: Tensor, sequence: bool) -> tuple[list[Tensor], list[Tensor]]:
    rank = dist.get_rank()
    own = x.chunk(2, 1)[rank] if sequence else x
    own = own.detach().clone().requires_grad_()
    y = model(own)
    y.backward(dy.chunk(2, 1)[rank] if sequence else dy)
    results = [y.detach(), own.grad]
    if sequence:
        gathered = [t.new_empty(2 * B, *t.shape[1:]) for t in results]
        for out, t in zip(gathered, results, strict=True):
            dist.all_gather_into_tensor(out, t.contiguous())
        results = [torch.cat(out.chunk(2), 1) for out in gathered]
    grads = [layer.weight.grad.to_local() for layer in (model.gate, model.up, model.down)]
    return results, grads


def check_numbers() -> None:
    """Bits of the halves' codes; only sums over ranks are ordered otherwise."""
    x, dy = values(B, T, D, seed=1), values(B, T, D, seed=2)
    for recipe in ("tensorwise", "rowwise"):
        for how in ("tensor", "sequence", "prepared"):
            for bias in (False, True) if recipe == "tensorwise" else (False,):
                wanted = in_one_process(recipe, x, dy, bias, torch.float32)
                model = parallel(recipe, how, bias, torch.float32)
                found = run(model, x, dy, how != "tensor")
                case = (recipe, how, bias)
                assert same(found[0][0], wanted[0][0]), case
                torch.testing.assert_close(found[0][1], wanted[0][1], rtol=1e-5, atol=1e-5)
                for one, other in zip(found[1], wanted[1], strict=True):
                    assert same(one, other), case
                if bias:
                    db = model.down.bias.grad
                    total = db.full_tensor() if isinstance(db, DTensor) else db
                    torch.testing.assert_close(total, dy.sum((0, 1)), rtol=1e-5, atol=1e-4)


def check_bytes() -> None:
    """Tokens travel as codes: half the bytes of bfloat16, once for layers that share them."""
    x, dy = (values(B, T, D, seed=s).bfloat16() for s in (1, 2))
    counts = {}
    for recipe, how in (
        ("rowwise", "sequence"),
        ("tensorwise", "sequence"),
        ("tensorwise", "prepared"),
    ):
        model = parallel(recipe, how, False, torch.bfloat16)
        rank = dist.get_rank()
        own = x.chunk(2, 1)[rank].detach().clone().requires_grad_()
        with Counted() as counted:
            y = model(own)
        forward = counted.gathered
        with Counted() as counted:
            y.backward(dy.chunk(2, 1)[rank])
        counts[recipe, how] = forward, counted.gathered
    elements = B * T * D
    assert counts["rowwise", "sequence"] == (2 * 2 * elements, 2 * elements), counts
    assert counts["tensorwise", "sequence"] == (2 * elements, elements), counts
    assert counts["tensorwise", "prepared"] == (elements, elements), counts


def check_replicated() -> None:
    """Data parallel by DTensor: the weight is everywhere, tokens are sharded."""
    torch.manual_seed(0)
    layer = Float8Linear.from_float(nn.Linear(D, F).to(device()), trained_by())
    whole = [layer.weight.detach(), layer.bias.detach()]
    x, dy = values(8, D, seed=1), values(8, F, seed=2)
    rank = dist.get_rank()
    plain = Float8Linear.from_float(layer.to_float(), trained_by())
    parts = []
    for part in range(2):
        plain.zero_grad()
        plain(x.chunk(2)[part]).backward(dy.chunk(2)[part].clone())
        parts.append([p.grad.clone() for p in plain.parameters()])
    layer.weight, layer.bias = (
        nn.Parameter(distribute_tensor(p.clone(), mesh(), [Replicate()])) for p in whole
    )
    y = layer(distribute_tensor(x, mesh(), [Shard(0)]))
    assert y.placements == (Shard(0),)
    assert same(y.to_local(), plain(x.chunk(2)[rank]))
    y.backward(distribute_tensor(dy, mesh(), [Shard(0)]))
    for p, one, two in zip((layer.weight, layer.bias), *parts, strict=True):
        torch.testing.assert_close(p.grad.full_tensor(), one + two)


def refused(run_: object, kind: type[Exception], words: str) -> None:
    try:
        run_()  # type: ignore[operator]
    except kind as error:
        assert words in str(error), str(error)
    else:
        raise AssertionError(f"not refused: {words}")


def check_refusals() -> None:
    x = values(B, T, D, seed=1)
    plain = nn.Sequential(nn.Linear(D, F)).to(device())
    styles = Float8ColwiseParallel, Float8RowwiseParallel, PrepareFloat8ModuleInput
    for style in styles:
        options = {"input_layouts": Shard(1), "desired_input_layouts": Replicate()}
        made = style(**options) if style is PrepareFloat8ModuleInput else style()
        refused(
            lambda made=made: parallelize_module(plain, mesh(), {"0": made}),
            TypeError,
            "convert_to_float8_training first",
        )
    layer = Float8Linear.from_float(nn.Linear(D, F).to(device()), trained_by())
    layer.weight = nn.Parameter(distribute_tensor(layer.weight.detach(), mesh(), [Shard(1)]))
    refused(lambda: layer(x), ValueError, "its input is none")
    whole = distribute_tensor(x, mesh(), [Replicate()])
    refused(lambda: layer(whole), ValueError, "cannot be multiplied; allowed are weights")
    model = parallel("tensorwise", "sequence", False, torch.float32)
    model_out = Float8RowwiseParallel(output_layouts=Shard(1))
    assert "Rowwise" in repr(model_out)
    uneven = values(B, 3, D, seed=1)  # 3 tokens of every rank make 6, which divide
    assert model(uneven).shape == (B, 3, D)


def check_two_dimensions() -> None:
    """FSDP2 over tensor parallel, on a mesh of 1 x 2 and of 2 x 1."""
    from torch.distributed.fsdp import fully_shard

    x, dy = values(B, T, D, seed=1), values(B, T, D, seed=2)
    wanted = in_one_process("tensorwise", x, dy, False, torch.float32)
    for gather in (False, True):
        whole = dist.device_mesh.init_device_mesh(device(), (1, 2), mesh_dim_names=("dp", "tp"))
        torch.manual_seed(0)
        model = Mlp("tensorwise")
        if gather:
            for layer in (model.gate, model.up, model.down):
                layer.configure(trained_by(enable_fsdp_float8_all_gather=True))
        plan = {
            "gate": Float8ColwiseParallel(),
            "up": Float8ColwiseParallel(),
            "down": Float8RowwiseParallel(),
        }
        parallelize_module(model, whole["tp"], plan)
        fully_shard(model, mesh=whole["dp"])
        own = x.clone().requires_grad_()
        y = model(own)
        y.backward(dy)
        assert same(y, wanted[0][0]), gather
        torch.testing.assert_close(own.grad, wanted[0][1], rtol=1e-5, atol=1e-5)
        for layer, grad in zip((model.gate, model.up, model.down), wanted[1], strict=True):
            assert same(layer.weight.grad.to_local(), grad)


CHECKS = (
    check_numbers,
    check_bytes,
    check_replicated,
    check_refusals,
    check_two_dimensions,
)


def check_mesh() -> None:
    """Those of FSDP2, too: starting two processes takes longer than a check."""
    for check in (*FSDP_CHECKS, *CHECKS):
        with ordinary_reports(check.__name__):
            check()
