"""Float8LinearConfig: which operands of a training step are quantized, how, and with what scales.

A linear layer has three products, and each of its three tensors is an operand of two of them:

    forward  y_MN  = x_MK  @ w_NK.T      input, weight
    dgrad    dx_MK = dy_MN @ w_NK        grad_output, weight
    wgrad    dw_NK = dy_MN.T @ x_MK      grad_output, input

M tokens, N output features, K input features.
"""

from dataclasses import dataclass

import torch

from ao_core.config import AOBaseConfig, register_config
from ao_core.errors import ConfigError

__all__ = ["RECIPES", "SCALINGS", "Float8LinearConfig"]

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
SCALINGS = ("tensorwise", "rowwise", "blockwise", "mx", "int8")
WEIGHT_CACHES = ("pass", "scale", "step", "off")


@register_config
@dataclass(frozen=True, kw_only=True)
class Float8LinearConfig(AOBaseConfig):
    """How linear layers are trained; `from_recipe_name` gives the usual choices.

    scaling                     what shares a scale: "tensorwise" the whole tensor; "rowwise" a row
                                of each product's operand; "blockwise" 1 x 128 elements of input and
                                grad_output, 128 x 128 of weight; "mx" 32 elements, with powers of
                                two (MXFP8); "int8" a row, in int8 instead of float8
    input_dtype, weight_dtype, grad_output_dtype
                                torch.float8_e4m3fn or torch.float8_e5m2 (int8: torch.int8). No
                                product has two e5m2 operands: GPUs do not multiply them
    grad_weight_in_high_precision
                                wgrad multiplies the tensors as they are, so that the input is saved
                                in its own dtype
    round_scales_to_power_of_2  scales are rounded up to powers of two, so scaling rounds nothing
    use_fast_accum              the forward product keeps its sums in the matrix units (about 14
                                bits); dgrad and wgrad never do
    weight_cache                what is kept of a weight's codes, see docs/numerics.md:
                                "pass"  those that backward needs, until it has run, where they
                                        take no more memory than saving the input as codes has won
                                        (N <= M); else, where inputs are saved as they are, and
                                        under torch.compile, they are made again in backward
                                "scale" as "pass", and the scale until the weight changes, so that
                                        of several passes a step only the first looks for it;
                                        tensorwise only
                                "step"  both directions until the weight changes: 2 bytes a
                                        parameter, for gradient accumulation and recomputation;
                                        not under torch.compile, and not of experts that FSDP2
                                        has gathered
                                "off"   nothing
    recompute_casts             inputs are saved as they are, and cast again in backward. Less
                                memory under torch.compile(options=compile_options()), where none
                                is saved: they are made anew from what is saved anyway. Else more
    enable_fsdp_float8_all_gather
                                FSDP2 gathers weights as codes; tensorwise only
    emulate                     run on devices that cannot multiply the codes (CPUs, older GPUs):
                                the same codes, multiplied in float32; for tests, not for speed

    Everything is checked when the config is built: ConfigError.
    """

    scaling: str = "tensorwise"
    input_dtype: torch.dtype = E4M3
    weight_dtype: torch.dtype = E4M3
    grad_output_dtype: torch.dtype = E5M2
    grad_weight_in_high_precision: bool = False
    round_scales_to_power_of_2: bool = False
    use_fast_accum: bool = True
    weight_cache: str = "pass"
    recompute_casts: bool = False
    enable_fsdp_float8_all_gather: bool = False
    emulate: bool = False

    def __post_init__(self) -> None:
        _one_of("scaling", self.scaling, SCALINGS)
        _one_of("weight_cache", self.weight_cache, WEIGHT_CACHES)
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} is True or False, got {getattr(self, name)!r}")
        self._check_operands()
        if self.enable_fsdp_float8_all_gather and self.scaling != "tensorwise":
            raise ConfigError(
                "enable_fsdp_float8_all_gather needs scaling='tensorwise': one scale a weight is "
                f"known before the shards meet, those of {self.scaling!r} are not"
            )
        if self.weight_cache == "scale" and self.scaling != "tensorwise":
            raise ConfigError(
                "weight_cache='scale' needs scaling='tensorwise', whose casts take a known scale; "
                f"with {self.scaling!r}, 'step' keeps codes and scales"
            )
        if self.round_scales_to_power_of_2 and self.scaling == "int8":
            raise ConfigError("int8 codes have no scales that are rounded to powers of two")

    def _check_operands(self) -> None:
        allowed = (torch.int8,) if self.scaling == "int8" else (E4M3, E5M2)
        for name in _OPERANDS:
            dtype = getattr(self, f"{name}_dtype")
            if dtype not in allowed:
                others = " or ".join(map(str, allowed))
                raise ConfigError(
                    f"{name}_dtype is {dtype}; with scaling={self.scaling!r} it must be {others}. "
                    "A product needs both operands quantized, and to the same kind: to keep wgrad "
                    "in high precision, set grad_weight_in_high_precision=True; to keep a layer, "
                    "leave it out with module_filter_fn"
                )
        products = {
            "forward": ("input", "weight"),
            "dgrad": ("grad_output", "weight"),
            "wgrad": ("grad_output", "input"),
        }
        if self.grad_weight_in_high_precision:
            del products["wgrad"]
        for product, pair in products.items():
            if all(getattr(self, f"{name}_dtype") == E5M2 for name in pair):
                raise ConfigError(
                    f"{' and '.join(f'{name}_dtype' for name in pair)} are both {E5M2}, and GPUs "
                    f"do not multiply them ({product}); make one of them {E4M3}"
                )

    @classmethod
    def from_recipe_name(cls, recipe: str) -> "Float8LinearConfig":
        """One of the recipes in `RECIPES`; ConfigError for other names.

        tensorwise          one scale a tensor; gradients in e5m2. The fastest
        rowwise             one power-of-two scale a row, all in e4m3. More accurate
        rowwise_with_gw_hp  rowwise, and wgrad in high precision. The most accurate of the three
        blockwise           blocks of 1 x 128 and 128 x 128, all in e4m3
        mxfp8               blocks of 32 that share a power of two, all in e4m3
        int8                one scale a row, in int8
        """
        if recipe not in RECIPES:
            raise ConfigError(f"no recipe is named {recipe!r}; there are {', '.join(RECIPES)}")
        return RECIPES[recipe]


_OPERANDS = ("input", "weight", "grad_output")
_FLAGS = (
    "grad_weight_in_high_precision",
    "round_scales_to_power_of_2",
    "use_fast_accum",
    "recompute_casts",
    "enable_fsdp_float8_all_gather",
    "emulate",
)


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} is {' or '.join(map(repr, allowed))}, got {value!r}")


_ROWWISE = Float8LinearConfig(
    scaling="rowwise", grad_output_dtype=E4M3, round_scales_to_power_of_2=True
)
RECIPES = {
    "tensorwise": Float8LinearConfig(),
    "rowwise": _ROWWISE,
    "rowwise_with_gw_hp": Float8LinearConfig(
        scaling="rowwise",
        grad_output_dtype=E4M3,
        round_scales_to_power_of_2=True,
        grad_weight_in_high_precision=True,
    ),
    "blockwise": Float8LinearConfig(scaling="blockwise", grad_output_dtype=E4M3),
    "mxfp8": Float8LinearConfig(scaling="mx", grad_output_dtype=E4M3),
    "int8": Float8LinearConfig(
        scaling="int8",
        input_dtype=torch.int8,
        weight_dtype=torch.int8,
        grad_output_dtype=torch.int8,
    ),
}
