"""Read a LoRA adapter: a folder with adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

from collections.abc import Mapping

from raymerge.checkpoint.catalog import Catalog
from raymerge.checkpoint.dtypes import DType
from raymerge.checkpoint.folder import Folder
from raymerge.checkpoint.header import read_pinned_header
from raymerge.checkpoint.lora import ADAPTER_CONFIG, parse_lora
from raymerge.checkpoint.strict_json import parse_config
from raymerge.errors import SourceError

ADAPTER_NAME = "adapter_model.safetensors"
PICKLED_ADAPTER = "adapter_model.bin"
_DTYPES = frozenset({DType.F32, DType.F16, DType.BF16})


def holds_adapter(sizes: Mapping[str, int]) -> bool:
    """Whether a folder with these files is an adapter and no model.

    A folder that holds both, as training leaves them, is the model: loaders of models see that one.
    """
    adapter = not sizes.keys().isdisjoint((ADAPTER_CONFIG, ADAPTER_NAME, PICKLED_ADAPTER))
    return adapter and not any(
        name.endswith(".safetensors") or name.startswith("pytorch_model")
        for name in sizes
        if name != ADAPTER_NAME
    )


def read_adapter(folder: Folder, *, label: str) -> Catalog:
    """Read and check the config and the header of an adapter. No weight is read.

    Its config is pinned with its weights, since both make the merged tensors; no other file of its
    folder is a part of the merge.

    Raises:
        PlanError: The adapter is of a kind that raymerge does not implement.
        SourceError: It is no adapter, is pickled, or is malformed.
    """
    sizes = folder.sizes()
    if ADAPTER_CONFIG not in sizes:
        raise SourceError(
            f"{label}: {folder.location} is no LoRA adapter: there is no {ADAPTER_CONFIG} in it. "
            f"Give the folder that holds {ADAPTER_CONFIG} and {ADAPTER_NAME}",
            source=label,
            file=ADAPTER_CONFIG,
        )
    config = parse_config(
        folder.read(ADAPTER_CONFIG, 0, sizes[ADAPTER_CONFIG]), file=ADAPTER_CONFIG, source=label
    )
    lora = parse_lora(config, source=label)
    if ADAPTER_NAME not in sizes:
        raise _without_weights(sizes, folder.location, label)
    pins = {name: folder.pin(name) for name in (ADAPTER_CONFIG, ADAPTER_NAME)}
    header = read_pinned_header(folder, ADAPTER_NAME, pins[ADAPTER_NAME], source=label)
    for entry in header.entries:
        if entry.dtype not in _DTYPES:
            raise SourceError(
                f"{label}: {ADAPTER_NAME}: {entry.name} is {entry.dtype.torch_name}; expected "
                "float32, float16 or bfloat16",
                source=label,
                tensor=entry.name,
                file=ADAPTER_NAME,
            )
    return Catalog(
        label=label,
        location=folder.location,
        tensors={entry.name: entry for entry in header.entries},
        pins=pins,
        config={},
        side_files=(),
        lora=lora,
    )


def _without_weights(sizes: Mapping[str, int], location: str, label: str) -> SourceError:
    if PICKLED_ADAPTER not in sizes:
        return SourceError(
            f"{label}: {location} has {ADAPTER_CONFIG} and no {ADAPTER_NAME}; fetch it",
            source=label,
            file=ADAPTER_NAME,
        )
    convert = (
        'python -c "import torch, safetensors.torch as s; '
        f"s.save_file({{k: v.contiguous() for k, v in torch.load('{location}/{PICKLED_ADAPTER}', "
        f"weights_only=True).items()}}, '{location}/{ADAPTER_NAME}')\""
    )
    return SourceError(
        f"{label}: {PICKLED_ADAPTER} is pickled, which can run code when read; raymerge reads "
        f"safetensors only. Convert with: {convert}",
        source=label,
        file=PICKLED_ADAPTER,
    )
