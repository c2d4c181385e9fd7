"""The compiled extension. The ops return NotImplemented for arguments that they do not take as they
are."""

from collections.abc import Sequence

import torch
from torch import Tensor

def isa() -> str: ...
def available_isas() -> list[str]: ...
def set_isa(name: str) -> None: ...
def thread_backend() -> str: ...
def set_thread_backend(name: str) -> None: ...
def read_memory(address: int, bytes: int, n_threads: int) -> int: ...
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
def count_steps(counts: list[Tensor], /) -> list[float]: ...
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
def adam_step_table(
    token: int,
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
) -> Tensor: ...
def lion_step_table(
    token: int,
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
) -> Tensor: ...
def int4_linear(
    n_threads: int,
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    group_size: int,
    bias: Tensor | None = None,
    /,
) -> Tensor: ...
def int8_dynamic_int4_linear(
    n_threads: int,
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    group_size: int,
    bias: Tensor | None = None,
    /,
) -> Tensor: ...
def int8_dynamic_intx_linear(
    n_threads: int,
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    group_size: int,
    bias: Tensor | None = None,
    /,
) -> Tensor: ...
def int8_dynamic_linear(
    n_threads: int, x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None = None, /
) -> Tensor: ...
def int8_embedding(
    n_threads: int,
    indices: Tensor,
    codes: Tensor,
    scale: Tensor,
    group_size: int,
    dtype: torch.dtype,
    /,
) -> Tensor: ...
def int8_linear(
    n_threads: int,
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    group_size: int,
    bias: Tensor | None = None,
    /,
) -> Tensor: ...
def int8_tokens(n_threads: int, x: Tensor, symmetric: bool, /) -> tuple[Tensor, Tensor, Tensor]: ...
def intx_embedding(
    n_threads: int,
    indices: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    group_size: int,
    length: int,
    dtype: torch.dtype,
    /,
) -> Tensor: ...
def intx_linear(
    n_threads: int,
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    group_size: int,
    bias: Tensor | None = None,
    /,
) -> Tensor: ...
