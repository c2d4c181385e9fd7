"""AoConfig: what `from_pretrained(quantization_config=...)` takes and config.json keeps.

    {"quant_method": "ao", "quant_type": {"type": "Int4WeightOnlyConfig", ...},
     "modules_to_not_convert": null, "include_embedding": false}

Transformers sorts the keys of config.json, so what has an order (the rules of a FqnToConfig)
travels as a list of pairs.
"""

import re
from collections.abc import Sequence
from typing import Any

from transformers.quantizers import register_quantization_config
from transformers.utils.quantization_config import QuantizationConfigMixin

import ao_quant  # noqa: F401  registers the configs and tensors that config.json and headers name
from ao_core.config import AOBaseConfig, config_from_dict, config_to_dict
from ao_core.errors import ConfigError
from ao_core.match import FqnToConfig
from ao_core.transform import get_handler

__all__ = ["METHOD", "AoConfig"]

METHOD = "ao"
FIELDS = ("quant_type", "modules_to_not_convert", "include_embedding")


@register_quantization_config(METHOD)
class AoConfig(QuantizationConfigMixin):
    """How a Transformers model is quantized.

    quant_type
        A config such as Int4WeightOnlyConfig(): every linear and every fused mixture of experts,
        but not the input and output embeddings nor what is tied to them. Or FqnToConfig, which says
        it by name or pattern; its "_default" stands for the same.
    modules_to_not_convert
        Names to leave in float, matched as Transformers does: as a prefix up to a dot, as a regular
        expression from the start, or as the end of a name. They win over every rule.
    include_embedding
        Convert the input and output embeddings too; tied ones stay tied, and are stored once.

    Raises ConfigError (a ValueError) for a value that cannot be, TypeError for a config that
    nothing knows how to apply.
    """

    def __init__(
        self,
        quant_type: AOBaseConfig,
        modules_to_not_convert: Sequence[str] | None = None,
        *,
        include_embedding: bool = False,
    ) -> None:
        if not isinstance(quant_type, AOBaseConfig):
            raise ConfigError(
                "AoConfig: quant_type is a config such as Int4WeightOnlyConfig(), "
                f"got {quant_type!r}"
            )
        rules = quant_type if isinstance(quant_type, FqnToConfig) else [("_default", quant_type)]
        for _, config in rules:
            if config is not None:
                get_handler(config)
        if not isinstance(include_embedding, bool):
            raise ConfigError(
                f"AoConfig: include_embedding is True or False, got {include_embedding!r}"
            )
        self.quant_method = METHOD  # type: ignore[assignment]
        self.quant_type = quant_type
        self.modules_to_not_convert = _checked(modules_to_not_convert)
        self.include_embedding = include_embedding

    def to_dict(self) -> dict[str, Any]:
        """JSON values; `from_dict` is the inverse."""
        return {
            "quant_method": METHOD,
            "quant_type": config_to_dict(self.quant_type),
            "modules_to_not_convert": self.modules_to_not_convert,
            "include_embedding": self.include_embedding,
        }

    @classmethod
    def from_dict(
        cls, config_dict: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """The inverse of `to_dict`; ConfigError for a field that is unknown or missing."""
        given = {key: value for key, value in config_dict.items() if key != "quant_method"}
        unknown = sorted(set(given) - set(FIELDS))
        if unknown:
            raise ConfigError(
                f"AoConfig has no field {', '.join(map(repr, unknown))}; "
                f"its fields are {', '.join(FIELDS)}"
            )
        if not isinstance(given.get("quant_type"), dict):
            raise ConfigError(
                f"AoConfig: quant_type is a JSON object, got {given.get('quant_type')!r}"
            )
        config = cls(**(given | {"quant_type": config_from_dict(given["quant_type"])}))
        return (config, kwargs) if return_unused_kwargs else config

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AoConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]


def _checked(patterns: Sequence[str] | None) -> list[str] | None:
    if patterns is None:
        return None
    if isinstance(patterns, str) or not all(isinstance(p, str) and p for p in patterns):
        raise ConfigError(f"AoConfig: modules_to_not_convert is a list of names, got {patterns!r}")
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(
                f"AoConfig: modules_to_not_convert: {pattern!r} is neither a name nor a pattern: "
                f"{error}"
            ) from error
    return list(patterns)
