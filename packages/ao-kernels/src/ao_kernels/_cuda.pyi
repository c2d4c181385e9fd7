"""The compiled extension with the CUDA kernels. The ops return NotImplemented for arguments that
they do not take as they are."""

def device_refusal(device: int) -> str: ...
