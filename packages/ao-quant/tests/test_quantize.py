"""quantize_ on whole models: every config on linears, embeddings, 1x1 convolutions and experts, and
bad input."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from every_config import CONFIGS, EACH, ON
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd

import ao_quant
from ao_core.config import AOBaseConfig, config_from_json, config_to_json
from ao_core.errors import ConfigError, ConversionError, UnsupportedOpError
from ao_core.tensor import QTensor
from ao_quant import (
    Float8DynamicActivationFloat8WeightConfig,
    Float8DynamicActivationInt4WeightConfig,
    Float8StaticActivationFloat8WeightConfig,
    Float8WeightOnlyConfig,
    FqnToConfig,
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8DynamicActivationIntxWeightConfig,
    Int8StaticActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    PerAxis,
    PerBlock,
    PerGroup,
    PerTensor,
    quantize_,
)


def test_every_config_is_here() -> None:
    exported = {name for name in ao_quant.__all__ if name.endswith("Config")} - {"FqnToConfig"}
    assert {type(config).__name__ for config, *_ in CONFIGS.values()} == exported


def mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(160, 96), nn.SiLU(), nn.Linear(96, 80, bias=False))


def sqnr_db(exact: torch.Tensor, got: torch.Tensor) -> float:
    exact, got = exact.detach().double(), got.detach().double()
    return float(20 * torch.log10(exact.norm() / (exact - got).norm()))


@EACH
def test_linears(name: str) -> None:
    config, least, what = CONFIGS[name]
    model, x = mlp(), torch.randn(7, 160)
    exact = model(x)
    report = quantize_(model, config)
    assert [row.what for row in report.converted] == [what, what]
    assert all(isinstance(model[i].weight, QTensor) for i in (0, 2))
    assert report.bytes_after < 0.55 * report.bytes_before
    assert sqnr_db(exact, model(x)) >= least


@EACH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models(name: str, dtype: torch.dtype) -> None:
    config, least, _ = CONFIGS[name]
    model, x = mlp().to(dtype), torch.randn(7, 160, dtype=dtype)
    exact = copy.deepcopy(model).float()(x.float())
    quantize_(model, config)
    y = model(x)
    assert y.dtype == dtype and sqnr_db(exact, y.float()) >= min(least, 36)


@EACH
def test_embeddings(name: str) -> None:
    config, _, _ = CONFIGS[name]
    model = nn.Embedding(50, 72, padding_idx=3)
    exact = model.weight.detach()
    quantize_(model, config, lambda module, fqn: isinstance(module, nn.Embedding))
    indices = torch.tensor([[0, 49], [3, 7]])
    assert torch.equal(model(indices), F.embedding(indices, model.weight.dequantize()))
    assert model(indices).shape == (2, 2, 72) and exact.shape == model.weight.shape
    assert torch.equal(
        model.to(torch.bfloat16)(indices), F.embedding(indices, model.weight.dequantize())
    )


@EACH
def test_tied_head_and_embedding(name: str) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(40, 64)
            self.head = nn.Linear(64, 40, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, indices: torch.Tensor) -> torch.Tensor:
            return self.head(self.embed(indices))

    config, least, _ = CONFIGS[name]
    model, indices = Tied(), torch.arange(40)[None]
    exact = model(indices)
    report = quantize_(model, FqnToConfig({"embed": config, "head": config}))
    assert model.head.weight is model.embed.weight and len(report.tied) == 1
    assert sqnr_db(exact, model(indices)) >= min(least, 36) - 6
    loaded = copy.deepcopy(model)
    assert loaded.head.weight is loaded.embed.weight and torch.equal(
        loaded(indices), model(indices)
    )


@EACH
def test_one_by_one_convolutions(name: str) -> None:
    config, least, _ = CONFIGS[name]
    for conv, x in (
        (nn.Conv1d(64, 48, 1), torch.randn(2, 64, 9)),
        (nn.Conv2d(64, 48, 1, stride=2), torch.randn(2, 64, 6, 5)),
        (nn.Conv2d(64, 48, 1, padding=1, bias=False), torch.randn(64, 4, 5)),
        (nn.Conv3d(64, 48, 1), torch.randn(1, 64, 3, 2, 2)),
    ):
        exact, shape = conv(x), conv.weight.shape
        quantize_(conv, config, lambda module, fqn: True)
        assert conv.weight.shape == shape and conv.weight.dequantize().shape == shape
        y = conv(x)
        assert y.shape == exact.shape and sqnr_db(exact, y) >= min(least, 36) - 3
        conv.weight.update_(torch.zeros(shape))
        assert conv.weight.dequantize().abs().sum() == 0


@EACH
def test_experts(name: str) -> None:
    """(E, N, K) parameters of any module, as Transformers' fused experts hold them."""

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up_proj = nn.Parameter(torch.randn(3, 48, 64))

        def forward(self, x: torch.Tensor, expert: int) -> torch.Tensor:
            return F.linear(x, self.up_proj[expert])

    config, least, _ = CONFIGS[name]
    model = nn.ModuleDict({"mlp": Experts()})
    w, x = model["mlp"].up_proj.detach().clone(), torch.randn(5, 64)
    report = quantize_(model, FqnToConfig({r"re:.*up_proj": config}))
    assert report["mlp.up_proj"].shape == (3, 48, 64)
    for expert in range(3):
        assert sqnr_db(x @ w[expert].T, model["mlp"](x, expert)) >= min(least, 36) - 3
    tokens = torch.randn(6, 64)
    offsets = torch.tensor([2, 2, 6], dtype=torch.int32)
    y = torch.ops.aten._grouped_mm(tokens, model["mlp"].up_proj.mT, offsets)
    torch.testing.assert_close(y[:2], model["mlp"](tokens[:2], 0))
    torch.testing.assert_close(y[2:], model["mlp"](tokens[2:], 2))


@EACH
def test_grouped_product_of_experts_is_one_graph(name: str) -> None:
    """Which rows meet which expert is known only when the graph runs; gradients pass through it."""
    torch._dynamo.reset()
    config, _, _ = CONFIGS[name]
    model = nn.Module()
    model.up_proj = nn.Parameter(torch.randn(3, 48, 64))
    quantize_(model, FqnToConfig({"up_proj": config}))

    def product(x: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        return torch.ops.aten._grouped_mm(x, model.up_proj.mT, offsets)

    compiled = torch.compile(product, fullgraph=True, backend="aot_eager")
    for ends in ([2, 2, 6], [0, 1, 6]):
        x, offsets = torch.randn(6, 64), torch.tensor(ends, dtype=torch.int32)
        assert torch.equal(compiled(x, offsets), product(x, offsets))
        eager, traced = (x.clone().requires_grad_() for _ in range(2))
        product(eager, offsets).square().sum().backward()
        compiled(traced, offsets).square().sum().backward()
        torch.testing.assert_close(traced.grad, eager.grad)


@EACH
def test_state_dict_and_pickle(name: str) -> None:
    config, _, _ = CONFIGS[name]
    model, x = mlp(), torch.randn(3, 160)
    quantize_(model, config)
    stream = io.BytesIO()
    torch.save(model.state_dict(), stream)
    stream.seek(0)
    twin = mlp(seed=1)
    twin.load_state_dict(torch.load(stream, weights_only=True), assign=True)
    twin[0].bias.data.copy_(model[0].bias)
    assert torch.equal(twin(x), model(x))


@EACH
def test_config_json(name: str) -> None:
    config, _, _ = CONFIGS[name]
    assert config_from_json(config_to_json(config)) == config


def test_compile_of_a_whole_model() -> None:
    torch._dynamo.reset()
    model, x = mlp(), torch.randn(3, 160)
    quantize_(
        model,
        FqnToConfig(
            {"0": Int4WeightOnlyConfig(group_size=32), "2": Int8DynamicActivationInt8WeightConfig()}
        ),
    )
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.update_(torch.randn(layer.weight.shape))
    # New weights in the same storage, no new compilation.
    torch.testing.assert_close(compiled(x), model(x))


@ON
@EACH
def test_a_compiled_linear_is_its_op_and_no_copy(name: str, device: str) -> None:
    torch._dynamo.reset()
    on_reference = {"cpu": ("float8", "int8 static"), "cuda": ("8da4w", "int6 dynamic")}[device]
    if name.startswith(on_reference):
        pytest.skip("has no kernel there: compilers see the reference and fuse it")
    model = nn.Sequential(nn.Linear(256, 64)).bfloat16().to(device)
    quantize_(model, CONFIGS[name][0])
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    x = torch.randn(2, 3, 256, device=device).bfloat16()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend=aot_autograd(fw_compiler=keep))
        assert torch.equal(compiled(x), model(x))
    (graph,) = graphs
    calls = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert len(calls) == 1 and calls[0].startswith("ao.") and calls[0].endswith("linear.default")


def test_requantize_carries_the_options() -> None:
    """A merge (LoRA) needs no argument: the weight knows its format."""
    for config, _, _ in CONFIGS.values():
        model, other = mlp(), mlp(seed=1)
        quantize_(model, config)
        merged = model[0].weight.requantize(other[0].weight)
        quantize_(other, config)
        assert torch.equal(merged, other[0].weight.detach()), config


# --- bad input


def refused(
    model: nn.Module, message: str, config: AOBaseConfig | None = None, **kwargs: object
) -> None:
    before = {n: id(p) for n, p in model.named_parameters()}
    with pytest.raises(ConversionError, match=message):
        quantize_(model, config or Int4WeightOnlyConfig(), **kwargs)
    assert before == {n: id(p) for n, p in model.named_parameters()}


def test_group_that_does_not_divide() -> None:
    """The last group is shorter; its scale and everybody else's are those of its own elements."""
    w = torch.randn(8, 100)
    whole, ragged = nn.Linear(96, 8, bias=False), nn.Linear(100, 8, bias=False)
    whole.weight.data, ragged.weight.data = w[:, :96].clone(), w.clone()
    for layer in (whole, ragged):
        quantize_(layer, Int4WeightOnlyConfig(group_size=32))
    assert ragged.weight.scale.shape == (8, 4)
    assert torch.equal(ragged.weight.scale[:, :3], whole.weight.scale)
    assert torch.equal(ragged.weight.dequantize()[:, :96], whole.weight.dequantize())
    last = nn.Linear(4, 8, bias=False)
    last.weight.data = w[:, 96:].clone()
    quantize_(last, Int4WeightOnlyConfig(group_size=32))
    assert torch.equal(ragged.weight.dequantize()[:, 96:], last.weight.dequantize())


def test_layers_that_cannot_be_converted() -> None:
    everything = {"filter_fn": lambda module, fqn: hasattr(module, "weight")}
    refused(
        nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)),
        r"1\.weight: has shape \(8,\)",
        **everything,
    )
    refused(
        nn.Sequential(nn.Conv2d(8, 8, 3)), r"0\.weight: is a Conv2d with a 3x3 kernel", **everything
    )
    refused(nn.Sequential(nn.Conv2d(8, 8, 1, groups=4)), "4 groups", **everything)
    refused(
        nn.LSTM(8, 8),
        "LSTM, whose kernels take float",
        FqnToConfig({"weight_ih_l0": Int8WeightOnlyConfig()}),
    )
    bad = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    bad[1].weight.data[0, 0] = float("nan")
    refused(bad, r"1\.weight: the weight contains NaN")
    report = quantize_(bad, Int4WeightOnlyConfig(), on_nonfinite="keep")
    assert [row.status for row in report.rows] == ["converted", "skipped"]
    refused(bad, r"0\.weight: is quantized already \(IntxTensor\)")
    refused(nn.Sequential(nn.Linear(8, 8, device="meta")), "meta device")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Int4WeightOnlyConfig(group_size=12), "multiple of 8"),
        (lambda: Int4WeightOnlyConfig(group_size=0), "positive"),
        (lambda: Int4WeightOnlyConfig(algorithm="best"), "'minmax' or 'hqq'"),
        (lambda: Int8WeightOnlyConfig(granularity=PerAxis(1)), "granularity is one of"),
        (lambda: Int8WeightOnlyConfig(granularity=32), "granularity is one of"),  # type: ignore[arg-type]
        (
            lambda: Int8DynamicActivationInt8WeightConfig(granularity=PerGroup(32)),
            "granularity is one of",
        ),
        (lambda: IntxWeightOnlyConfig(weight_dtype=torch.uint8), "torch.int1 to torch.int8"),
        (lambda: Float8WeightOnlyConfig(weight_dtype=torch.int8), "float8_e4m3fn or torch.float8"),
        (lambda: Float8WeightOnlyConfig(granularity=PerBlock((4, 12))), "rows, a multiple of 8"),
        (lambda: Float8WeightOnlyConfig(granularity=PerBlock((8,))), "rows, a multiple of 8"),
        (
            lambda: Float8DynamicActivationFloat8WeightConfig(granularity=PerGroup(32)),
            "granularity is one of PerTensor, PerRow, PerBlock",
        ),
        (
            lambda: Float8DynamicActivationFloat8WeightConfig(granularity=PerBlock((64, 64))),
            r"blocks are PerBlock\(block_size=\(128, 128\)\)",
        ),
        (
            lambda: Float8StaticActivationFloat8WeightConfig(activation_range=0.0),
            "activation_range is a positive number",
        ),
        (
            lambda: Int8StaticActivationInt8WeightConfig(activation_range=float("nan")),
            "activation_range is a positive number",
        ),
        (
            lambda: Int8StaticActivationInt8WeightConfig(activation_range=True),
            "activation_range is a positive number",
        ),
        (lambda: Float8DynamicActivationInt4WeightConfig(group_size=12), "multiple of 8"),
        (lambda: IntxWeightOnlyConfig(mapping_type="affine"), "'symmetric' or 'asymmetric'"),
        (
            lambda: Int8DynamicActivationIntxWeightConfig(weight_granularity=PerTensor()),
            "granularity is one of",
        ),
        (
            lambda: config_from_json('{"type": "Int4WeightOnlyConfig", "groupsize": 32}'),
            "no field 'groupsize'",
        ),
        (lambda: config_from_json('{"type": "Int4WeightOnly"}'), "unknown config type"),
    ],
)
def test_bad_configs(build: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()  # type: ignore[operator]


def test_operations_that_a_quantized_weight_refuses() -> None:
    model = nn.Embedding(8, 8, max_norm=1.0)
    quantize_(model, Int8WeightOnlyConfig(), lambda module, fqn: True)
    with pytest.raises(UnsupportedOpError, match="max_norm"):
        model(torch.tensor([1]))
    linear = nn.Linear(8, 8)
    quantize_(linear, Int8WeightOnlyConfig())
    with pytest.raises((ValueError, RuntimeError), match="int8_linear"):
        linear(torch.randn(2, 9))
    with pytest.raises(UnsupportedOpError, match="dequantize"):
        F.linear(linear.weight, torch.randn(3, 8))
