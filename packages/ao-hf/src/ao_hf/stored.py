"""Quantized checkpoints: how a model's quantized weights are stored, and how they come back.

Saving: `<module>.weight` becomes the plain tensors `<module>.weight_codes`, `<module>.weight_scale`
and so on, under the names that the model itself uses, and the header of the files says what belongs
together, so ao_core.checkpoint reads the folder too.

Loading: before Transformers reads anything, every quantized parameter is replaced by placeholders,
one for each of its plain tensors, on the meta device. Transformers loads them as it loads any
parameter (device maps, shards, ties); afterwards they are put together. It has no step of ours to
run or to revert.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ao_core.checkpoint import encode_header, find_tied, flatten, read_files
from ao_core.checkpoint_tensors import field_name
from ao_core.config import AOBaseConfig
from ao_core.errors import CheckpointError
from ao_core.tensor import QTensor

__all__ = ["Placeholders", "to_plain"]


def to_plain(
    model: PreTrainedModel, config: AOBaseConfig
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A model's state as plain tensors, each stored once, and the header that explains them."""
    ignored = getattr(model, "_keys_to_ignore_on_save", None) or ()
    aliases = getattr(model, "all_tied_weights_keys", None) or {}
    state = {n: t for n, t in model.state_dict(keep_vars=True).items() if n not in ignored}
    tied = {}
    for first, others in find_tied(state).items():
        group = sorted([first, *others], key=lambda name: name in aliases)  # stable: sources first
        tied[group[0]] = group[1:]
    dropped = {name for others in tied.values() for name in others}
    plain, entries = flatten({n: t for n, t in state.items() if n not in dropped})
    return plain, encode_header(entries, tied=tied, config=config)


class Placeholders:
    """The stand-ins for a model's quantized parameters while Transformers loads a checkpoint."""

    def __init__(
        self,
        model: PreTrainedModel,
        files: Sequence[str],
        dtype_of: Callable[[str, Tensor], torch.dtype],
    ) -> None:
        """Read what `files` hold, and put placeholders into `model`, which is on the meta device.

        dtype_of(name, parameter) is the dtype that a parameter has in the loaded model.
        CheckpointError when the files are not a checkpoint of ours, are damaged, or do not fit.
        """
        if not files or not all(str(path).endswith(".safetensors") for path in files):
            found = ", ".join(map(str, files)) or "none"
            raise CheckpointError(f"quantized weights are read from safetensors files, got {found}")
        skeletons, stored = read_files(files)
        self.model = model
        self.weights: dict[str, QTensor] = {}
        self.original_ties = dict(model.all_tied_weights_keys)
        names = dict(model.named_parameters(remove_duplicate=False))
        for name, q in skeletons.items():
            found = next((n for n in self._spellings(name) if n in names), "")
            if not found:  # Transformers reports its tensors as unexpected
                continue
            if q.shape != names[found].shape:
                raise CheckpointError(
                    f"{name}: has shape {list(q.shape)} in the checkpoint, "
                    f"{list(names[found].shape)} in the model"
                )
            self._put(found, q.rebuild(dtype=dtype_of(found, names[found])))
        self._tie({n for name in stored for n in self._spellings(name)})

    def _spellings(self, name: str) -> tuple[str, ...]:
        """A name as a model with another head, or none, has it: Transformers finds those too."""
        prefix = self.model.base_model_prefix
        return (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}."))

    def _put(self, name: str, q: QTensor) -> None:
        module, leaf = _owner(self.model, name)
        parts = {
            field_name(leaf, field): nn.Parameter(t, requires_grad=False)
            for field, t in q.tensors().items()
        }
        for part in parts:
            if hasattr(module, part):
                raise CheckpointError(f"{name}: {type(module).__name__} has its own {part}")
        stand_in: Any = module._parameters[leaf]
        _replace(module, [leaf], parts)
        # Transformers initializes what was not loaded, module by module, and looks at module.weight
        # for it: it finds one that says that it is initialized.
        stand_in._is_hf_initialized = True
        object.__setattr__(module, leaf, stand_in)
        self.weights[name] = q

    def _tie(self, stored: set[str]) -> None:
        """Tie the placeholders of tied parameters: Transformers fills both from what is stored."""
        ties: dict[str, str] = {}
        for target, source in self.original_ties.items():
            q = self.weights.get(source, self.weights.get(target))
            if q is None:
                ties[target] = source
                continue
            both = source in self.weights and target in self.weights
            if both or source in stored or target in stored:
                continue  # two weights: the tie has ended
            self._put(target if source in self.weights else source, q)
            ties |= {field_name(target, field): field_name(source, field) for field in q.tensors()}
        self.model.all_tied_weights_keys = ties

    def names(self) -> set[str]:
        """The placeholders' full names."""
        return {field_name(name, f) for name, q in self.weights.items() for f in q.tensors()}

    def assemble(self) -> None:
        """Replace the loaded placeholders by the quantized parameters that they make up."""
        made: dict[tuple[int, ...], nn.Parameter] = {}
        for name, q in self.weights.items():
            module, leaf = _owner(self.model, name)
            parts = [field_name(leaf, field) for field in q.tensors()]
            loaded: list[Any] = [module._parameters[part] for part in parts]
            if any(t.is_meta for t in loaded):
                raise CheckpointError(f"{name}: was not loaded into memory")
            key = tuple(map(id, loaded))
            if key not in made:
                fields = dict(zip(q.tensors(), (t.detach() for t in loaded), strict=True))
                made[key] = nn.Parameter(q.rebuild(**fields), requires_grad=False)
            object.__delattr__(module, leaf)
            _replace(module, parts, {leaf: made[key]})
        self.model.all_tied_weights_keys = {
            target: source
            for target, source in self.original_ties.items()
            if _parameter(self.model, target) is _parameter(self.model, source)
        }


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf


def _parameter(model: nn.Module, name: str) -> Any:
    module, leaf = _owner(model, name)
    return getattr(module, leaf)


def _replace(module: nn.Module, old: Sequence[str], new: Mapping[str, nn.Parameter]) -> None:
    """Put parameters where others were, in the same place of the module's order."""
    parameters: dict[str, nn.Parameter | None] = {}
    for name, parameter in module._parameters.items():
        if name == old[0]:
            parameters |= new
        if name not in old:
            parameters[name] = parameter
    module._parameters.clear()
    module._parameters.update(parameters)
