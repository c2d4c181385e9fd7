"""CUDA kernels: thin calls into the compiled extension ``ao_kernels._cuda``.

Imported only when arguments are on an accelerator or AO_KERNELS=cuda|triton. ``unavailable`` says
why there are none ("" when there are).
"""

import importlib.util

KERNELS = (
    "adam_step",
    "float8_dynamic_grouped_linear",
    "float8_dynamic_linear",
    "float8_grouped_linear",
    "float8_grouped_matmul",
    "float8_grouped_wgrad",
    "float8_linear",
    "float8_static_linear",
    "int4_grouped_linear",
    "int4_linear",
    "int8_dynamic_grouped_linear",
    "int8_dynamic_linear",
    "int8_grouped_linear",
    "int8_linear",
    "int8_static_linear",
    "intx_linear",
    "lion_step",
    "quantize_block_both",
    "quantize_grouped_both",
    "quantize_rowwise_both",
)

if importlib.util.find_spec("ao_kernels._cuda") is None:
    unavailable = (
        "the compiled extension ao_kernels._cuda is not there: it is built where a CUDA toolkit is "
        "found and AO_KERNELS_CUDA is not off (AO_KERNELS_CUDA=on in the environment of "
        "`pip install` makes its absence an error that says what is missing); Triton's kernels "
        "serve GPUs without it"
    )
else:
    try:
        from ao_kernels import _cuda  # noqa: F401
    except ImportError as error:
        unavailable = f"the compiled extension ao_kernels._cuda cannot be imported ({error})"
    else:
        unavailable = ""

__all__ = ["KERNELS", "unavailable"]
