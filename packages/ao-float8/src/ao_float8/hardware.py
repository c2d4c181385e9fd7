"""Which devices multiply the codes of a config; the only file that asks."""

import functools

import torch

__all__ = ["check_device", "refusal"]


@functools.cache
def refusal(scaling: str, device: torch.device) -> str | None:
    """Why products of this scaling cannot run on a device, or None."""
    if device.type == "meta":
        return None
    if device.type != "cuda":
        return _no_products(device)
    if torch.version.hip:
        return "AMD GPUs are not supported"
    major, minor = torch.cuda.get_device_capability(device)
    needed = (8, 0) if scaling == "int8" else (8, 9)
    if (major, minor) >= needed:
        return None
    name = torch.cuda.get_device_name(device)
    return (
        f"{name} has compute capability {major}.{minor}; products of "
        f"{'int8' if scaling == 'int8' else 'float8'} codes need {needed[0]}.{needed[1]} or later"
    )


def _no_products(device: torch.device) -> str:
    return f"{device.type} devices have no fast products of codes"


def check_device(scaling: str, device: torch.device, *, emulate: bool) -> None:
    """RuntimeError where training in float8 can only be emulated, unless that is asked for."""
    if emulate:
        return
    if torch.compiler.is_compiling():  # which cannot look into a cache; conversion has asked a GPU
        reason = None if device.type in ("cuda", "meta") else _no_products(device)
    else:
        reason = refusal(scaling, device)
    if reason:
        raise RuntimeError(
            f"float8 training: {reason}. Move the model to such a GPU before the forward pass, or, "
            "to try out the numbers slowly, set emulate=True in Float8LinearConfig"
        )
