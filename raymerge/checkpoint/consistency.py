"""What a checkpoint says about itself - config, totals, our own record - and whether it is so.

Pure: catalogs and parsed JSON in, sentences out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from raymerge.checkpoint.catalog import Catalog
from raymerge.checkpoint.dtypes import OUTPUT_DTYPES, DType
from raymerge.checkpoint.quantised import quantisation
from raymerge.checkpoint.ties import (
    config_sections,
    find_embedding,
    is_head,
    needs_head,
    tied_by_config,
)


@dataclass(frozen=True, slots=True)
class Recorded:
    """What the merge's own record says of a shard, unchecked: anyone can edit a file."""

    size_bytes: Any
    sha256: Any


# How families name layers beside the embedding: `model.embed_tokens.weight`, `model.layers.0.`
_LAYERS_BESIDE = {
    "embed_tokens.weight": "layers.",
    "wte.weight": "h.",
    "embed_in.weight": "layers.",
}


def config_problems(catalog: Catalog) -> Iterator[str]:
    """Sentences on where config.json contradicts the tensors.

    Element types are held against it by majority: a checkpoint is what most of its parameters are.
    Vocabulary and layers are compared where the names leave no doubt which numbers are meant.
    """
    yield from _tie_problems(catalog)
    if quantisation(catalog) is None:
        yield from _dtype_problems(catalog)
        yield from _vocabulary_problems(catalog)
    yield from _layer_problems(catalog)


def dtype_notes(catalog: Catalog) -> Iterator[str]:
    """A sentence on the tensors that are not of the config's element type, if most others are."""
    named = _named_dtype(catalog.config)
    counts = Counter(entry.dtype for entry in catalog.tensors.values() if entry.dtype.mergeable)
    for dtype, count in sorted(counts.items()):
        if named is not None and dtype != named:
            yield f"{count} tensors are {dtype} where config.json says {named.torch_name}"


def totals_problems(metadata: Any, catalog: Catalog) -> Iterator[str]:
    """Sentences on where the index's `metadata` has the totals wrong. It may leave them out."""
    if not isinstance(metadata, Mapping):
        yield "the index has no metadata object; older versions of transformers need one"
        return
    entries = catalog.tensors.values()
    truth = {
        "total_size": sum(entry.nbytes for entry in entries),
        "total_parameters": sum(entry.num_elements for entry in entries),
    }
    for key, expected in truth.items():
        if metadata.get(key, expected) != expected:
            yield f"the index says {key} is {metadata[key]}; the tensors make {expected}"


def recorded_shards(record: Mapping[str, Any]) -> Mapping[str, Recorded]:
    """Length and sha256 of every shard by our own record, `raymerge.json`, if it lists any."""
    listed = record.get("shards")
    shards = [s for s in listed if isinstance(s, dict)] if isinstance(listed, list) else []
    return {
        str(shard.get("name")): Recorded(shard.get("bytes"), shard.get("sha256"))
        for shard in shards
    }


def record_problems(
    found: Mapping[str, tuple[int, str | None]], recorded: Mapping[str, Recorded]
) -> Iterator[str]:
    """Sentences on where the shards found are not the recorded ones."""
    if not recorded:
        return
    for name in sorted(found.keys() - recorded.keys()):
        yield f"{name} is not in the record of the merge"
    for name, written in recorded.items():
        size_bytes, sha256 = found.get(name, (None, None))
        if size_bytes is None:
            yield f"{name} is in the record of the merge and could not be checked"
        elif size_bytes != written.size_bytes:
            yield f"{name} has {size_bytes} bytes; the merge wrote {written.size_bytes}"
        elif sha256 != written.sha256:
            yield f"{name} has the sha256 {sha256}; the merge wrote {written.sha256}"


def _tie_problems(catalog: Catalog) -> Iterator[str]:
    untied = tied_by_config(catalog.config) is False and needs_head(catalog.config)
    if untied and find_embedding(catalog) and not any(map(is_head, catalog.tensors)):
        yield "config.json says tie_word_embeddings is false, but there is no output head"


def _dtype_problems(catalog: Catalog) -> Iterator[str]:
    named = _named_dtype(catalog.config)
    parameters: Counter[DType] = Counter()
    for entry in catalog.tensors.values():
        if entry.dtype.mergeable:
            parameters[entry.dtype] += entry.num_elements
    if named is None or not parameters:
        return
    most, count = parameters.most_common(1)[0]
    if most != named and parameters[named] < count:
        share = count / parameters.total()
        yield f"config.json says {named.torch_name}, but {share:.1%} of the parameters are {most}"


def _vocabulary_problems(catalog: Catalog) -> Iterator[str]:
    embedding = find_embedding(catalog)
    vocab_size = _number(catalog.config, "vocab_size")
    if embedding is None or vocab_size is None:
        return
    rows, columns = catalog.tensors[embedding].shape
    # Where the widths differ, the embedding is another one than the config speaks of.
    if columns == _number(catalog.config, "hidden_size", "n_embd") and rows != vocab_size:
        yield f"config.json says vocab_size is {vocab_size}; {embedding} has {rows} rows"


def _layer_problems(catalog: Catalog) -> Iterator[str]:
    num_layers = _number(catalog.config, "num_hidden_layers", "n_layer")
    found = _layer_numbers(catalog)
    # An encoder and a decoder have a number each, and only one of them is called this.
    if num_layers is None or not found or "decoder_layers" in catalog.config:
        return
    # DeepSeek stores its prediction layers behind the last.
    extra = _number(catalog.config, "num_nextn_predict_layers") or 0
    if missing := sorted(set(range(num_layers)) - found):
        yield f"config.json says {num_layers} layers; there is no tensor of layer {missing[0]}"
    if beyond := sorted(number for number in found if number >= num_layers + extra):
        yield f"config.json says {num_layers} layers; there are tensors of layer {beyond[-1]}"


def _layer_numbers(catalog: Catalog) -> set[int]:
    embedding = find_embedding(catalog) or ""
    for ending, layers in _LAYERS_BESIDE.items():
        if embedding.endswith(ending):
            prefix = embedding.removesuffix(ending) + layers
            inside = (name[len(prefix) :] for name in catalog.tensors if name.startswith(prefix))
            numbers = {name.partition(".")[0] for name in inside}
            return {int(number) for number in numbers if number.isdecimal()}
    return set()


def _named_dtype(config: Mapping[str, Any]) -> DType | None:
    for section in config_sections(config):
        name = section.get("dtype") or section.get("torch_dtype")
        if isinstance(name, str):
            return OUTPUT_DTYPES.get(name.removeprefix("torch."))
    return None


def _number(config: Mapping[str, Any], *keys: str) -> int | None:
    for section in config_sections(config):
        for key in keys:
            if type(section.get(key)) is int:
                return int(section[key])
    return None
