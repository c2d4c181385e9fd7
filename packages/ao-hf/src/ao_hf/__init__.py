"""ao-hf: models quantized with ao-quant in Hugging Face Transformers.

    import ao_hf
    from ao_quant import Int4WeightOnlyConfig
    from transformers import AutoModelForCausalLM

    config = ao_hf.AoConfig(Int4WeightOnlyConfig())
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)
    model.save_pretrained(saved)
    model = AutoModelForCausalLM.from_pretrained(saved)

Importing it registers the quantization method "ao" with Transformers, which has no other way to
find it: a checkpoint of ours loads as quantized only after `import ao_hf`.
"""

from importlib.metadata import PackageNotFoundError, version

from .config import AoConfig
from .quantizer import AoQuantizer, attach

try:
    __version__ = version("ao-hf")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["AoConfig", "AoQuantizer", "__version__", "attach"]
