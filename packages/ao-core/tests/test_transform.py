"""The conversion engine: checks first, all or nothing, tied weights, reports."""

import copy
import itertools

import pytest
import torch
from torch import nn

from ao_core.config import AOBaseConfig
from ao_core.errors import ConversionError
from ao_core.match import FqnToConfig
from ao_core.testing.example_format import ExampleConfig, ExampleTensor
from ao_core.transform import convert_, register_handler


def mlp(*sizes: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(sizes)))


def snapshot(model: nn.Module) -> dict[str, int]:
    return {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}


def refused(
    model: nn.Module, message: str, config: AOBaseConfig | None = None, **kwargs: object
) -> ConversionError:
    """The conversion raises, and the very same parameter objects are still in place."""
    before = snapshot(model)
    with pytest.raises(ConversionError, match=message) as caught:
        convert_(model, config or ExampleConfig(), **kwargs)
    assert snapshot(model) == before
    return caught.value


def test_report_of_a_conversion() -> None:
    model = mlp(8, 16, 4)
    report = convert_(model, ExampleConfig())
    assert [row.status for row in report.rows] == ["converted", "converted"]
    assert report["0"].shape == (16, 8) and report["0"].bytes_before == 16 * 8 * 4
    assert report["0"].bytes_after == 16 * 8 + 16 * 4
    assert report.untouched_bytes == (16 + 4) * 4
    assert report.bytes_before == sum(p.numel() for p in mlp(8, 16, 4).parameters()) * 4
    assert (
        report.bytes_after
        == report["0"].bytes_after + report["1"].bytes_after + report.untouched_bytes
    )
    assert "2 converted" in str(report) and "0.weight" in report.table()
    assert report.to_dict()["rows"][0]["fqn"] == "0.weight"
    with pytest.raises(KeyError, match="no rule reached"):
        report["5"]
    assert (
        not any(p.requires_grad for p in (model[0].weight, model[1].weight))
        and model[0].bias.requires_grad
    )


def test_a_single_layer_is_a_model() -> None:
    layer = nn.Linear(8, 4)
    assert convert_(layer, ExampleConfig()).converted[0].fqn == "weight"
    assert isinstance(layer.weight, ExampleTensor)


def test_refusals_name_the_layer_and_change_nothing() -> None:
    error = refused(
        mlp(8, 16, 4),
        r"1 of 2 parameters cannot be converted \(nothing was changed\)",
        ExampleConfig(refuse=(16,)),
    )
    assert "0.weight: has 16 rows" in str(error) and "strict=False" in str(error)
    assert [row.fqn for row in error.report.skipped] == ["0.weight"]


def test_not_strict_leaves_what_cannot_be_converted() -> None:
    model = mlp(8, 16, 4)
    report = convert_(model, ExampleConfig(refuse=(16,)), strict=False)
    assert report["0"].status == "skipped" and report["0"].what == "has 16 rows"
    assert not isinstance(model[0].weight, ExampleTensor) and isinstance(
        model[1].weight, ExampleTensor
    )
    assert report["0"].bytes_after == report["0"].bytes_before


def test_failure_half_way_rolls_back() -> None:
    """The first layer was swapped already when the second failed."""
    for strict in (True, False):
        refused(
            mlp(8, 16, 5, 4),
            r"1\.weight: a weight of 5 rows failed on purpose \(the model is unchanged\)",
            ExampleConfig(fail=(5,)),
            strict=strict,
        )


def test_interrupt_rolls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = mlp(8, 16, 4), []

    def interrupted(w: torch.Tensor) -> ExampleTensor:
        calls.append(w)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(w)

    original = ExampleTensor.from_float
    monkeypatch.setattr(ExampleTensor, "from_float", interrupted)
    before = snapshot(model)
    with pytest.raises(KeyboardInterrupt):
        convert_(model, ExampleConfig())
    assert snapshot(model) == before


def test_bad_weights_are_refused_by_name() -> None:
    with_nan, with_inf = mlp(8, 16, 4), mlp(8, 16, 4)
    with torch.no_grad():
        with_nan[1].weight[2, 3] = float("nan")
        with_inf[1].weight[2, 3] = float("-inf")
    refused(with_nan, r"1\.weight: the weight contains NaN or inf")
    refused(with_inf, r"1\.weight: the weight contains NaN or inf")
    report = convert_(with_nan, ExampleConfig(), on_nonfinite="keep")
    assert report["1"].status == "skipped" and report["0"].status == "converted"

    refused(mlp(8, 4).to("meta"), "meta device")
    refused(_with(torch.zeros(4, 8, dtype=torch.int32)), "dtype torch.int32")
    refused(_with(torch.zeros(4, 8, dtype=torch.complex64)), "dtype torch.complex64")
    refused(_with(torch.eye(8).to_sparse()), "sparse")
    refused(_with(torch.tensor(1.0)), r"shape \(\)")
    refused(_with(torch.zeros(0, 8)), r"shape \(0, 8\)")


def _with(weight: torch.Tensor) -> nn.Module:
    model = mlp(8, 8)
    model[0]._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
    return model


def test_twice_is_refused() -> None:
    model = mlp(8, 4)
    convert_(model, ExampleConfig())
    refused(model, "quantized already")
    report = convert_(model, ExampleConfig(), strict=False)
    assert "quantized already" in report["0"].what


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.body = nn.Linear(8, 8)
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.embed.weight


BOTH = FqnToConfig({"embed": ExampleConfig(), "head": ExampleConfig(), "_default": ExampleConfig()})


def test_half_of_a_tie_is_left_alone_and_reported() -> None:
    model = Tied()
    report = convert_(model, ExampleConfig())
    assert report["head"].status == "skipped" and "tied to embed.weight" in report["head"].what
    assert model.head.weight is model.embed.weight and isinstance(model.body.weight, ExampleTensor)
    assert report.bytes_before == 12 * 8 * 4 + 8 * 8 * 4 + 8 * 4


def test_half_of_a_tie_named_outright_is_an_error() -> None:
    refused(Tied(), "head.weight: is tied to embed.weight", FqnToConfig({"head": ExampleConfig()}))


def test_both_halves_stay_tied() -> None:
    model = Tied()
    report = convert_(model, BOTH)
    assert model.head.weight is model.embed.weight and isinstance(model.head.weight, ExampleTensor)
    assert [row.status for row in report.rows] == ["converted", "converted", "tied"]
    assert report.bytes_after == 12 * 8 + 12 * 4 + 8 * 8 + 8 * 4 + 8 * 4


def test_untie() -> None:
    model = Tied()
    embed = model.embed.weight
    convert_(model, ExampleConfig(), tied="untie")
    assert model.embed.weight is embed and isinstance(model.head.weight, ExampleTensor)


def test_ties_that_disagree_are_an_error() -> None:
    rules = FqnToConfig({"embed": ExampleConfig(), "head": ExampleConfig(refuse=(77,))})
    refused(Tied(), "ask for different configs", rules)


def test_shared_module_is_converted_once() -> None:
    layer = nn.Linear(8, 8)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    report = convert_(model, ExampleConfig())
    assert len(report.converted) == 1 and model[0].weight is model[2].weight


def test_wrong_arguments() -> None:
    model = mlp(8, 4)
    with pytest.raises(TypeError, match="expected a config"):
        convert_(model, "int8")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        convert_(torch.ones(2), ExampleConfig())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tied is 'keep' or 'untie'"):
        convert_(model, ExampleConfig(), tied="maybe")
    with pytest.raises(ValueError, match="on_nonfinite"):
        convert_(model, ExampleConfig(), on_nonfinite="drop")

    class Unknown(AOBaseConfig):
        pass

    with pytest.raises(TypeError, match="nothing knows how to apply Unknown"):
        convert_(model, Unknown())
    with pytest.raises(TypeError, match="has a handler already"):
        register_handler(ExampleConfig)(lambda w, config: w)


def test_deepcopy_before_and_after_agree() -> None:
    model = mlp(8, 16, 4)
    twin = copy.deepcopy(model)
    convert_(model, ExampleConfig())
    convert_(twin, ExampleConfig())
    x = torch.randn(3, 8)
    assert torch.equal(model(x), twin(x)) and torch.equal(copy.deepcopy(model)(x), model(x))


def test_progress_bar_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    convert_(mlp(8, 16, 4), ExampleConfig())
    assert capsys.readouterr().err == ""
    pytest.importorskip("tqdm", reason="the bar is tqdm's")
    convert_(mlp(8, 16, 4), ExampleConfig(), progress=True)
    assert "converting" in capsys.readouterr().err


def test_formats_without_kernels_have_no_kernels_to_report() -> None:
    model = mlp(8, 16, 4)
    report = convert_(model, ExampleConfig())
    assert report.kernels(model, tokens=(1, 2)) == []
    assert report.kernel_table(model).split() == [
        "layers",
        "first",
        "shape",
        "format",
        "tokens",
        "kernel",
    ]
