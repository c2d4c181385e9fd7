"""AoQuantizer: the hooks that Transformers calls while it loads, saves and converts a model.

a float checkpoint        selection.py chooses, conversion.py converts weight by weight
a checkpoint of ours      stored.py: placeholders before loading, quantized parameters after it
save_pretrained           stored.py: plain tensors and a header
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer, register_quantizer

from ao_core.config import AOBaseConfig
from ao_core.errors import CheckpointError, ConversionError
from ao_core.report import Report, Row
from ao_core.tensor import QTensor
from ao_core.transform import get_handler

from .config import METHOD, AoConfig
from .conversion import QuantizeWeights, quantized
from .selection import Selection, is_transposed, raise_together, select
from .stored import Placeholders, to_plain

__all__ = ["AoQuantizer", "attach"]


@register_quantizer(METHOD)
class AoQuantizer(HfQuantizer):
    """Transformers' view of a quantized model; users meet it as `model.hf_quantizer`.

    After loading, `model.quantization_report` says what was converted and what was not, and why.
    """

    quantization_config: AoConfig

    def __init__(self, quantization_config: AoConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.selection = Selection()
        self.operation = QuantizeWeights({}, ())
        self.placeholders: Placeholders | None = None
        self.float_conversions: Any = None
        self.sizes: dict[tuple[AOBaseConfig, int], float] = {}

    # --- before loading

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        if isinstance(device_map, Mapping):
            _refuse_offload(device_map)

    def _process_model_before_weight_loading(
        self,
        model: PreTrainedModel,
        checkpoint_files: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        if getattr(model.config, "distributed_config", None) is not None:
            raise NotImplementedError(
                "loading a quantized model with tp_plan or another distributed_config is not "
                "supported; load it whole, then shard its parameters with "
                "torch.distributed.tensor.distribute_tensor"
            )
        files = list(checkpoint_files or ())
        if self.pre_quantized:
            plan = model._get_dtype_plan(cast(torch.dtype, model.config.dtype))
            self.placeholders = Placeholders(model, files, lambda name, p: _dtype(plan, name, p))
            return
        _refuse_quantized_files(files)
        self.selection = select(model, self.quantization_config)
        self.operation = QuantizeWeights(self.selection.chosen, files)

    def param_element_size(self, model: PreTrainedModel, param_name: str, param: Tensor) -> float:
        """Bytes for each element once it is converted: what device maps are computed from."""
        target = self.selection.chosen.get(param_name)
        if target is None or target.config is None:
            return param.element_size()
        width = param.shape[-2 if is_transposed(target.module, param) else -1]
        key = (target.config, width)
        if key not in self.sizes:
            w = torch.zeros(8, width, dtype=param.dtype, device="cpu")
            q = get_handler(target.config).convert(w, target.config)
            self.sizes[key] = q.nbytes / q.numel()
        return self.sizes[key]

    # --- while loading

    def param_needs_quantization(
        self, model: PreTrainedModel, param_name: str, **kwargs: Any
    ) -> bool:
        return param_name in self.selection.chosen

    def get_quantize_ops(self) -> QuantizeWeights:
        return self.operation

    def get_new_dtype(
        self, converter: Any, param: Any, dtype: torch.dtype | None
    ) -> torch.dtype | None:
        """Codes, scales and zeros keep the dtypes that they were saved with."""
        if self.placeholders and set(converter.target_patterns) & self.placeholders.names():
            return None
        return super().get_new_dtype(converter, param, dtype)

    # --- after loading

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> None:
        _refuse_offload(getattr(model, "hf_device_map", None) or {})
        if self.placeholders is not None:
            self.placeholders.assemble()
            self.placeholders = None
        raise_together(self.operation.errors)
        self._convert_leftovers()
        # Saved under the model's own names: the conversions of a float checkpoint (experts in
        # pieces, other names) do not fit quantized tensors. `dequantize` brings them back.
        self.float_conversions = getattr(model, "_weight_conversions", None)
        model._weight_conversions = []
        model.quantization_report = report(model, self.selection.skipped)
        self.selection, self.operation = Selection(), QuantizeWeights({}, ())

    def _convert_leftovers(self) -> None:
        """Chosen weights that are float still: a step for another weight brought them, or none."""
        errors = {}
        for name, target in self.selection.chosen.items():
            module, w = target.module, target.module._parameters[target.name]
            if w is None or isinstance(w, QTensor):
                continue
            if not getattr(w, "_is_hf_initialized", False):
                self.selection.skipped[name] = "is not in the checkpoint: initialized, in float"
                continue
            try:
                module._parameters[target.name] = quantized(w, target)
            except (TypeError, ValueError) as error:
                errors[name] = str(error)
        raise_together(errors)

    # --- the quantized model

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        """True: gradients pass through quantized weights, to adapters; the weights are fixed."""
        return True

    @property
    def is_compileable(self) -> bool:
        return True

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[Any, dict[str, str]]:
        if getattr(model, "_hf_peft_config_loaded", False):  # only the adapters are saved
            return None, {}
        return to_plain(model, self.quantization_config.quant_type)

    def _dequantize(self, model: PreTrainedModel, dtype: Any = None) -> PreTrainedModel:
        """Float weights; with another `dtype`, parameters of the weights' old one follow."""
        if isinstance(dtype, str):  # config.dtype after save_pretrained
            dtype = getattr(torch, dtype)
        old = {p.dtype for p in model.parameters() if isinstance(p, QTensor)}
        made: dict[int, nn.Parameter] = {}
        for module in model.modules():
            for name, p in module._parameters.items():
                if p is None or not (isinstance(p, QTensor) or p.dtype in old):
                    continue
                if id(p) not in made:
                    made[id(p)] = _in_float(p, dtype or p.dtype)
                module._parameters[name] = made[id(p)]
        if dtype is not None:
            model.config.dtype = dtype
        model._weight_conversions = self.float_conversions
        model.__dict__.pop("quantization_report", None)
        return model


def attach(model: PreTrainedModel, quantization_config: AoConfig | AOBaseConfig) -> Report:
    """Let Transformers know that a model's weights were quantized, by `ao_quant.quantize_` say.

    From then on `save_pretrained` and `dequantize` work as for a model that was quantized while
    loading. `quantization_config` is what config.json will say; the weights are stored as they are.
    Returns the report, which is `model.quantization_report` too. ConversionError if no weight is
    quantized.
    """
    if not isinstance(quantization_config, AoConfig):
        quantization_config = AoConfig(quantization_config)
    if not any(isinstance(p, QTensor) for p in model.parameters()):
        raise ConversionError("attach: the model has no quantized weight; call quantize_ first")
    quantizer, known = AoQuantizer(quantization_config, pre_quantized=True), cast(Any, model)
    known.is_quantized = True
    known.quantization_method = METHOD
    known.hf_quantizer = quantizer
    quantizer.postprocess_model(model)
    return known.quantization_report


def report(model: nn.Module, skipped: Mapping[str, str]) -> Report:
    """What of a model is quantized, and why the parameters in `skipped` are not."""
    rows = []
    seen: set[int] = set()
    for fqn, p in model.named_parameters(remove_duplicate=False):
        if not isinstance(p, QTensor) and fqn not in skipped:
            continue
        first, before, after = id(p) not in seen, p.numel() * p.dtype.itemsize, p.nbytes
        status, what = "skipped", skipped.get(fqn, "")
        if isinstance(p, QTensor):
            status = "converted" if first else "tied"
            what = p.describe() if hasattr(p, "describe") else type(p).__name__
        sizes = {"bytes_before": before if first else 0, "bytes_after": after if first else 0}
        rows.append(Row(fqn=fqn, status=status, what=what, shape=tuple(p.shape), **sizes))
        seen.add(id(p))
    rest = [*model.parameters(), *model.buffers()]
    return Report(rows=rows, untouched_bytes=sum(t.nbytes for t in rest if id(t) not in seen))


def _in_float(p: nn.Parameter, dtype: torch.dtype) -> nn.Parameter:
    if isinstance(p, QTensor):
        return nn.Parameter(p.detach().to(dtype).dequantize(), requires_grad=False)
    if p.dtype == dtype:
        return p
    return nn.Parameter(p.detach().to(dtype), requires_grad=p.requires_grad)


def _dtype(plan: Mapping[str, torch.dtype], name: str, parameter: Tensor) -> torch.dtype:
    """The dtype that Transformers gives a parameter: the model's, or that of a rule it has."""
    rules = (dtype for rule, dtype in plan.items() if re.search(rule.replace("*", ".*"), name))
    return next(rules, parameter.dtype)


def _refuse_offload(device_map: Mapping[str, Any]) -> None:
    places = {str(device) for device in device_map.values()}
    if "disk" in places or (len(places) > 1 and "cpu" in places):
        where = "disk" if "disk" in places else "cpu"
        raise ValueError(
            f"the device_map offloads parts of the model to {where}, which quantized weights do "
            'not support: give a map of accelerators only, or device_map="cpu"'
        )


def _refuse_quantized_files(files: Sequence[str]) -> None:
    for path in files:
        if not str(path).endswith(".safetensors"):
            continue
        with safe_open(path, framework="pt") as file:
            if "ao_format_version" in (file.metadata() or {}):
                raise CheckpointError(
                    f"{path}: holds weights that are quantized already, though config.json has no "
                    "quantization_config; restore it, or load the float model"
                )
