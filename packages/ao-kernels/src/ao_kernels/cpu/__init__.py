"""CPU kernels: thin calls into the compiled extension ``ao_kernels._C``.

``unavailable`` says why there are none ("" when there are). The instruction set is chosen when the
extension is loaded, or by the environment variable AO_KERNELS_ISA=generic|avx2|avx512|neon.
"""

KERNELS = (
    "adam_step",
    "int4_grouped_linear",
    "int4_linear",
    "int8_dynamic_grouped_linear",
    "int8_dynamic_int4_linear",
    "int8_dynamic_intx_linear",
    "int8_dynamic_linear",
    "int8_embedding",
    "int8_grouped_linear",
    "int8_linear",
    "intx_embedding",
    "intx_grouped_linear",
    "intx_linear",
    "lion_step",
)

try:
    from ao_kernels import _C
except ImportError as error:
    _C = None  # type: ignore[assignment]
    unavailable = f"the compiled extension ao_kernels._C cannot be imported ({error})"
else:
    unavailable = ""

__all__ = ["KERNELS", "available_isas", "isa", "set_isa", "unavailable"]


def isa() -> str | None:
    """The instruction set in use: "generic", "avx2", "avx512" or "neon"; None without the
    extension."""
    return None if _C is None else _C.isa()


def available_isas() -> list[str]:
    """The instruction sets this machine can run, best last; empty without the extension."""
    return [] if _C is None else _C.available_isas()


def set_isa(name: str) -> None:
    """Uses one of :func:`available_isas` from now on. Raises ValueError for any other name."""
    if _C is None:
        raise RuntimeError(unavailable)
    _C.set_isa(name)
