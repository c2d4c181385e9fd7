"""The compiled extension with the CUDA kernels. The ops return NotImplemented for arguments that
they do not take as they are. most_tokens: int4_linear takes no more than that many, beyond the 16
that it takes in any case; 0 for any number. The other ops ignore it."""

from collections.abc import Sequence

from torch import Tensor, dtype

def device_refusal(device: int) -> str: ...
def most_token_values(device: int) -> int: ...
def many_tokens_refusal(device: int) -> str: ...
def force_grouped_tile(tokens: int) -> None: ...
def force_launches(launches: int) -> None: ...
def byte_product_refusal(device: int) -> str: ...
def adam_step(
    n_threads: int,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avg: Sequence[Tensor],
    exp_avg_sq: Sequence[Tensor],
    max_exp_avg_sq: Sequence[Tensor],
    exp_avg_scale: Sequence[Tensor],
    exp_avg_sq_scale: Sequence[Tensor],
    max_exp_avg_sq_scale: Sequence[Tensor],
    scalars: Tensor,
    state_bits: str,
    block_size: int,
    decoupled: bool,
    maximize: bool,
    dithers: Sequence[int],
    keys: Sequence[int],
    offsets: Sequence[int],
    /,
) -> None: ...
def lion_step(
    n_threads: int,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avg: Sequence[Tensor],
    exp_avg_scale: Sequence[Tensor],
    scalars: Tensor,
    state_bits: str,
    block_size: int,
    maximize: bool,
    keys: Sequence[int],
    offsets: Sequence[int],
    /,
) -> None: ...
def dequantize(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    group_size: int,
    block_n: int = 1,
    /,
) -> Tensor: ...
def float8_linear(
    n_threads: int,
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    block_n: int,
    block_k: int,
    bias: Tensor | None = None,
    /,
) -> Tensor: ...
def float8_dynamic_linear(
    n_threads: int,
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    block_n: int,
    block_k: int,
    activation: str,
    bias: Tensor | None = None,
    /,
) -> Tensor: ...
def float8_static_linear(
    n_threads: int,
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    x_scale: Tensor,
    block_n: int,
    block_k: int,
    bias: Tensor | None = None,
    /,
) -> Tensor: ...
def int4_linear(
    most_tokens: int,
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    group_size: int,
    bias: Tensor | None = None,
    /,
) -> Tensor: ...
def int8_dynamic_linear(
    n_threads: int,
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    /,
) -> Tensor: ...
def int8_linear(
    most_tokens: int,
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    group_size: int,
    bias: Tensor | None = None,
    /,
) -> Tensor: ...
def int8_static_linear(
    n_threads: int,
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    x_scale: Tensor,
    bias: Tensor | None = None,
    /,
) -> Tensor: ...
def intx_linear(
    most_tokens: int,
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    group_size: int,
    bias: Tensor | None = None,
    /,
) -> Tensor: ...
def float8_dynamic_grouped_linear(
    most_rows: int,
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    block_n: int,
    block_k: int,
    activation: str,
    offsets: Tensor,
    bias: Tensor | None = None,
    /,
) -> Tensor: ...
def float8_grouped_linear(
    most_rows: int,
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    block_n: int,
    block_k: int,
    offsets: Tensor,
    bias: Tensor | None = None,
    /,
) -> Tensor: ...
def float8_grouped_matmul(
    n_threads: int,
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    offsets: Tensor,
    out_dtype: dtype | None = None,
    fast_accum: bool = False,
    /,
) -> Tensor: ...
def float8_grouped_wgrad(
    n_threads: int,
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    ends: Tensor,
    out_dtype: dtype | None = None,
    fast_accum: bool = False,
    /,
) -> Tensor: ...
def int4_grouped_linear(
    most_rows: int,
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    group_size: int,
    offsets: Tensor,
    bias: Tensor | None = None,
    /,
) -> Tensor: ...
def int8_dynamic_grouped_linear(
    most_rows: int,
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    offsets: Tensor,
    bias: Tensor | None = None,
    /,
) -> Tensor: ...
def int8_grouped_linear(
    most_rows: int,
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    group_size: int,
    offsets: Tensor,
    bias: Tensor | None = None,
    /,
) -> Tensor: ...
def quantize_block_both(
    n_threads: int,
    x: Tensor,
    dtype: dtype,
    block_rows: int,
    block_cols: int,
    power_of_two: bool = False,
    outputs: str = "both",
    /,
) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...
def quantize_grouped_both(
    n_threads: int,
    x: Tensor,
    dtype: dtype,
    offsets: Tensor,
    power_of_two: bool = False,
    outputs: str = "both",
    /,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]: ...
def quantize_rowwise_both(
    n_threads: int, x: Tensor, dtype: dtype, power_of_two: bool = False, outputs: str = "both", /
) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...
