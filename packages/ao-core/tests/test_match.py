"""Which parameter gets which config."""

import json

import pytest
import torch
from torch import nn

from ao_core.config import config_from_dict, config_to_dict
from ao_core.errors import ConfigError, ConversionError
from ao_core.match import FqnToConfig
from ao_core.testing.example_format import ExampleConfig, ExampleTensor
from ao_core.transform import convert_

A, B, C = (ExampleConfig(refuse=(n,)) for n in (1001, 1002, 1003))


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(2, 16, 8))
        self.down_proj = nn.Parameter(torch.randn(2, 8, 8))
        self.gate_up_proj_bias = nn.Parameter(torch.randn(2, 16))


def model() -> nn.Module:
    block = nn.ModuleDict(
        {"q_proj": nn.Linear(8, 8), "norm": nn.LayerNorm(8), "experts": Experts()}
    )
    return nn.ModuleDict(
        {"embed": nn.Embedding(12, 8), "layers": nn.ModuleList([block]), "head": nn.Linear(8, 12)}
    )


def converted(rules: dict, **kwargs: object) -> dict[str, str]:
    m = model()
    report = convert_(m, FqnToConfig(rules), **kwargs)
    names = {n for n, p in m.named_parameters() if isinstance(p, ExampleTensor)}
    assert names == {row.fqn for row in report.converted}
    return names


def test_default_converts_linears() -> None:
    assert converted({"_default": A}) == {"layers.0.q_proj.weight", "head.weight"}
    m = model()
    assert {r.fqn for r in convert_(m, A).converted} == {"layers.0.q_proj.weight", "head.weight"}


def test_names_of_modules_and_parameters() -> None:
    assert converted({"head": A}) == {"head.weight"}
    assert converted({"head.weight": A}) == {"head.weight"}
    assert converted({"embed": A}) == {"embed.weight"}
    experts = "layers.0.experts"
    assert converted({f"{experts}.down_proj": A}) == {f"{experts}.down_proj"}
    assert converted({experts: A}) == {f"{experts}.gate_up_proj", f"{experts}.down_proj"}


def test_patterns_match_whole_names_and_skip_vectors() -> None:
    assert converted({r"re:.*proj": A}) == {
        "layers.0.q_proj.weight",
        "layers.0.experts.gate_up_proj",
        "layers.0.experts.down_proj",
    }
    # The norm's weight is a vector.
    assert converted({r"re:layers\.0\..*\.weight": A}) == {"layers.0.q_proj.weight"}
    with pytest.raises(ConversionError, match="match nothing"):
        converted({r"re:proj": A})


def test_precedence() -> None:
    """exact parameter > exact module > pattern on parameter > pattern on module > _default; None
    stops the search."""
    name = "layers.0.q_proj"
    rules = [
        ("_default", None),
        (r"re:layers\.0\.q_proj", None),
        (r"re:.*q_proj\.weight", None),
        (name, None),
        (f"{name}.weight", A),
    ]
    for depth in range(len(rules), 1, -1):
        chosen = dict(rules[: depth - 1]) | {rules[depth - 1][0]: A}
        assert f"{name}.weight" in converted(chosen), chosen
        blocked = dict(rules[: depth - 1]) | {rules[depth - 1][0]: None, "head": A}
        blocked["_default"] = A
        assert f"{name}.weight" not in converted(blocked), blocked


def test_first_pattern_wins() -> None:
    m = model()
    report = convert_(m, FqnToConfig({r"re:head.*": None, r"re:he.*": A, "_default": B}))
    assert report["head"].status == "skipped" and "re:head.*" in report["head"].what


def test_a_rule_that_matches_nothing_is_an_error() -> None:
    for strict in (True, False):
        m = model()
        with pytest.raises(
            ConversionError, match=r"'layers\.0\.q_prj'; did you mean 'layers\.0\.q_proj'"
        ):
            convert_(m, FqnToConfig({"layers.0.q_prj": A, "_default": A}), strict=strict)
        assert not any(isinstance(p, ExampleTensor) for p in m.parameters())
    with pytest.raises(ConversionError, match="filter_fn accepted no module"):
        convert_(model(), A, lambda module, fqn: False)
    with pytest.raises(ConversionError, match="no Linear"):
        convert_(nn.Sequential(nn.LayerNorm(4)), A)


def test_filter() -> None:
    m = model()
    report = convert_(m, A, lambda module, fqn: fqn in ("embed", "head"))
    assert {r.fqn for r in report.converted} == {"embed.weight", "head.weight"}
    with pytest.raises(ConfigError, match="not both"):
        convert_(m, FqnToConfig({"_default": A}), lambda module, fqn: True)


def test_json_keeps_the_order_of_rules() -> None:
    config = FqnToConfig({"re:z.*": A, "re:a.*": None, "_default": B})
    data = json.loads(json.dumps(config_to_dict(config), sort_keys=True))
    assert config_from_dict(data) == config
    assert [key for key, _ in config_from_dict(data)] == ["re:z.*", "re:a.*", "_default"]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({}, "no rules"),
        ({"re:(": A}, "not a valid pattern"),
        ({"x": "int8"}, "needs a config"),
        ({"x": FqnToConfig({"y": A})}, "needs a config"),
        ({1: A}, "names are strings"),
        ("int8", "takes a mapping"),
        ([("x", A), ("x", B)], "occurs twice"),
    ],
)
def test_bad_rules(rules: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FqnToConfig(rules)  # type: ignore[arg-type]
