"""quantize_: the one entry point."""

from collections.abc import Callable

from torch import nn

from ao_core.config import AOBaseConfig
from ao_core.report import Report
from ao_core.transform import convert_

__all__ = ["quantize_"]


def quantize_(
    model: nn.Module,
    config: AOBaseConfig,
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
    strict: bool = True,
    *,
    tied: str = "keep",
    on_nonfinite: str = "raise",
    progress: bool | None = None,
) -> Report:
    """Quantize a model's weights in place.

    model         any module; its parameters are replaced by quantized ones, its modules stay what
                  they are
    config        what to do, such as Int4WeightOnlyConfig(), for every linear; or
                  FqnToConfig({name or pattern: config})
    filter_fn     (module, name) -> bool: which modules to convert instead of every linear
    strict        True: a layer that cannot be converted is an error;
                  False: it is left alone and the report says why
    tied          "keep": a tied weight is converted in all its places, which rules must then name,
                  or left alone;
                  "untie": only the places that rules name are converted, and the tie ends
    on_nonfinite  "raise", or "keep" to leave weights with NaN or inf as they are
    progress      None: a bar on a terminal when the work is long (needs tqdm);
                  True or False to force

    Returns a Report of every weight that a rule reached.

    Raises ConversionError (a ValueError) when a rule matches nothing, or a layer cannot be
    converted and `strict`; ConfigError (a ValueError) or TypeError for a bad config. Whenever it
    raises, the model is as it was.
    """
    return convert_(
        model,
        config,
        filter_fn,
        strict=strict,
        tied=tied,
        on_nonfinite=on_nonfinite,
        progress=progress,
    )
