"""The base's weights, one at a time from memory-mapped files: as stored, or as an NF4 base shows them to its
adapters."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tasks.errors import ArtifactRefused
from tasks.merging.tensor_file import TensorFile
from tasks.methods.targets import HEAD_NAMES

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
NF4_BLOCK = 64


@dataclass(frozen=True)
class BaseWeights:
    """Named weights of a base. `tensor` reads one and forgets it.

    Attributes:
        folder: where config and tokenizer lie.
        shapes: tensor name ("model.norm.weight") to stored shape, in the order of the files.
        dtypes: tensor name to the dtype that `tensor` gives.
        read: a tensor by name, as the adapters see it.
        partly: the same for a range of rows, for tensors of which a part can be read alone.
    """

    folder: Path
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype]
    read: Callable[[str], Tensor] = field(repr=False)
    partly: Mapping[str, Callable[[str, slice], Tensor]] = field(default_factory=dict, repr=False)

    def rows(self, name: str) -> Callable[[slice], Tensor]:
        """A function from a row range of a tensor to those rows."""
        if name in self.partly:
            return partial(self.partly[name], name)
        whole = self.read(name)
        return lambda block: whole[block]

    def tensor(self, name: str) -> Tensor:
        return self.read(name)

    def weight(self, module: str) -> Tensor:
        """The weight (or bias, for "<module>.bias") of a module.

        Raises:
            KeyError: the base has none.
        """
        name = self.tensor_name(module)
        if name is None:
            raise KeyError(module)
        return self.read(name)

    def shape(self, module: str) -> tuple[int, ...] | None:
        """Stored shape of a module's weight (or bias); None if the base has none."""
        name = self.tensor_name(module)
        return None if name is None else self.shapes[name]

    def tensor_name(self, module: str) -> str | None:
        """The tensor behind a module name. A body saved on its own lacks the first part of the names that it has
        inside a model with a head ("bert.encoder..." is stored as "encoder...")."""
        for name in (module, module.partition(".")[2]):
            for tensor in (f"{name}.weight", name):
                if tensor in self.shapes:
                    return tensor
        return None


def held_weights(folder: Path, named: Mapping[str, Tensor]) -> BaseWeights:
    """Weights that are in memory already, by their names in the model."""
    shapes = {name: tuple(tensor.shape) for name, tensor in named.items()}
    return BaseWeights(folder, shapes, {name: tensor.dtype for name, tensor in named.items()}, named.__getitem__)


def open_base(
    folder: Path, *, nf4: Collection[str] = (), double_quant: bool = True, dtype: torch.dtype | None = None
) -> BaseWeights:
    """The weights of a transformers folder.

    Args:
        nf4: modules whose weights are shown rounded to NF4, as the adapters saw them; see `nf4_modules`.
        double_quant: their scales were quantised too.
        dtype: the type that the base was loaded in; None keeps each tensor's own.

    Raises:
        ArtifactRefused: weights are missing, unreadable, or stored quantised.
    """
    files = _files(folder)
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, torch.dtype] = {}
    home: dict[str, TensorFile] = {}
    try:
        for path in files:
            file = TensorFile(path)
            for key, stored in file.tensors.items():
                shapes[key], dtypes[key], home[key] = stored.shape, stored.dtype, file
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ArtifactRefused.one("E-MERGE-021", path, f"cannot be read: {error}", "restore the file") from error
    packed = [name for name in shapes if ".quant_state." in name or name.endswith(".absmax")]
    if packed:
        wrong = f"is stored quantised ({packed[0]})"
        raise ArtifactRefused.one("E-MERGE-022", folder, wrong, "merge on the folder with 16 or 32 bit weights")
    floating = {name: dtype or own if own.is_floating_point else own for name, own in dtypes.items()}

    def stored_rows(name: str, block: slice | None = None) -> Tensor:
        try:
            return home[name].rows(name, block).to(floating[name])
        except OSError as error:
            wrong = f"cannot be read: {error}"
            raise ArtifactRefused.one("E-MERGE-021", home[name].path, wrong, "restore the file") from error

    bare = BaseWeights(folder, shapes, floating, stored_rows)
    rounded = {name for module in nf4 if (name := bare.tensor_name(module)) is not None}

    def read(name: str) -> Tensor:
        value = bare.read(name)
        return nf4_round_trip(value, double_quant=double_quant) if name in rounded else value

    partly = {name: stored_rows for name in shapes if name not in rounded}  # scales are quantised over a whole tensor
    return BaseWeights(folder, shapes, floating, read, partly)


def held_base(folder: Path, tensors: Mapping[str, Tensor]) -> BaseWeights:
    """A base whose weights are in memory already, by tensor name."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return BaseWeights(
        folder, shapes, {name: tensor.dtype for name, tensor in tensors.items()}, lambda name: tensors[name]
    )


def nf4_round_trip(weight: Tensor, *, double_quant: bool = True) -> Tensor:
    """The weight after quantisation to NF4 in blocks of 64 and back (Dettmers et al. 2023, arXiv:2305.14314, section
    3)."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(
        weight.contiguous(), blocksize=NF4_BLOCK, compress_statistics=double_quant, quant_type="nf4"
    )
    return dequantize_4bit(packed, state).to(weight.dtype).reshape(weight.shape)


def nf4_modules(folder: Path, kind: str, *, labels: int = 2) -> tuple[str, ...]:
    """The modules that a base of this kind holds in NF4 (`tasks.training.base`), found on a model without weights:
    all linear layers but the heads.

    Raises:
        ArtifactRefused: the architecture stores linear weights as (in, out); bitsandbytes turns those around.
    """
    import transformers
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    model_of: Any = transformers.AutoModelForCausalLM
    if kind == "classification":
        model_of, config.num_labels = transformers.AutoModelForSequenceClassification, labels
    with torch.device("meta"):
        model = model_of.from_config(config)
    kept = list(HEAD_NAMES) if kind == "classification" else get_keys_to_not_convert(model)
    kept += list(model._keep_in_fp32_modules or ())
    chosen = [(name, module) for name, module in model.named_modules() if should_convert_module(name, kept)]
    if any(isinstance(module, Conv1D) for _, module in chosen):
        wrong = f"{config.model_type} stores linear weights as (in, out)"
        raise ArtifactRefused.one("E-MERGE-023", folder, wrong, "merge on the stored weights (merge_base: stored)")
    return tuple(name for name, module in chosen if type(module) is torch.nn.Linear)


def _files(folder: Path) -> list[Path]:
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        names = sorted(set(index["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        wrong = f"has neither {SINGLE} nor a readable {INDEX}"
        raise ArtifactRefused.one("E-MERGE-020", folder, wrong, "name a folder with safetensors weights") from error
    bad = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if bad:
        raise ArtifactRefused.one("E-MERGE-020", folder / INDEX, f"names a missing shard {bad[0]}", "restore the shard")
    return [folder / name for name in names]
