"""From a recipe's text to a `Recipe`: the top-level keys, and the order of the checks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from raymerge.checkpoint.dtypes import OUTPUT_DTYPES, DType
from raymerge.errors import RecipeError
from raymerge.methods import Method, methods
from raymerge.recipe.chat_templates import read_chat_template
from raymerge.recipe.dialect import IDLE_SOURCE_KEYS, refuse_stray_knobs
from raymerge.recipe.document import Fields, Items, Scalar, read_documents
from raymerge.recipe.model import ExpertLayout, NanPolicy, Recipe
from raymerge.recipe.parameters import SHORTHANDS
from raymerge.recipe.sections import read_sections
from raymerge.recipe.stages import join_stages
from raymerge.recipe.tokenizer_keys import read_tokenizer_policy
from raymerge.recipe.wording import did_you_mean, listed

TOP_KEYS = (
    "merge_method",
    "models",
    "slices",
    "modules",
    "base_model",
    "parameters",
    "dtype",
    "out_dtype",
    "seed",
    "drop",
    "keep",
    "nan",
    "experts",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
    "name",
    "out",
    "sweep",
    *SHORTHANDS,
)
"""Every key a recipe may have."""
DTYPES = {name: dtype for name, dtype in OUTPUT_DTYPES.items() if dtype is not DType.F64}
"""What `dtype` may name; arithmetic is float32, so float64 would be precision that is not there."""
NUM_SEEDS = 2**64
"""Seeds are 64-bit: half of a Philox key."""
_DTYPE_NICKNAMES = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
    "fp32": "float32",
    "float": "float32",
}


def load(path: str | os.PathLike[str]) -> Recipe:
    """Read a recipe file.

    Raises:
        RecipeError: The file cannot be read, or what is in it is wrong.
    """
    shown = os.fspath(path)
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise RecipeError(f"{shown}: no such recipe file", file=shown) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise RecipeError(f"{shown}: cannot be read: {reason}", file=shown) from error
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{shown}: is not UTF-8 text (byte {error.start}); a recipe is a YAML file", file=shown
        ) from error
    return loads(text, path=shown)


def loads(text: str, *, path: str = "<recipe>") -> Recipe:
    """Read a recipe from a string; one of several YAML documents is a recipe of several stages.

    Args:
        text: The YAML.
        path: What messages call it.

    Raises:
        RecipeError: File, line, key, what is wrong and what is allowed.
    """
    documents = read_documents(text, path)
    for top in documents:
        if "sweep" in top.fields:
            raise top.place_of("sweep").error(
                "sweep: this is a recipe of many merges; run it by `raymerge sweep`, whose "
                "--dry-run lists them"
            )
    return read_trees(documents, text, path)


def read_trees(documents: Sequence[Fields], text: str, path: str) -> Recipe:
    """Read a recipe from the mappings of its documents.

    Args:
        documents: One or more; none with a `sweep`.
        text: The YAML that says the same.
        path: What messages call it.

    Raises:
        RecipeError: File, line, key, what is wrong and what is allowed.
    """
    recipes = [_read_recipe(top, text, path) for top in documents]
    if len(documents) > 1:
        return join_stages(documents, recipes)
    [top], [recipe] = documents, recipes
    named = [f"{top.place_of('name')}: name has no effect"] if "name" in top.fields else []
    return replace(recipe, no_effect=(*named, *recipe.no_effect))


def _read_recipe(top: Fields, text: str, path: str) -> Recipe:
    refuse_stray_knobs(top, TOP_KEYS)
    _refuse_stray_keys(top)
    top.check_keys("a recipe", TOP_KEYS)
    method = _read_method(top)
    dtype = _read_dtype(top, "dtype")
    out_dtype = _read_dtype(top, "out_dtype")
    read = read_sections(top, method)
    recipe = Recipe(
        path=path,
        text=text,
        method=method,
        sources=read.sources,
        base=read.base,
        dtype=out_dtype or dtype,
        seed=_read_seed(top),
        drop=_read_patterns(top, "drop"),
        keep=_read_patterns(top, "keep"),
        nan=_read_nan(top),
        no_effect=(*_idle_keys(top), *read.no_effect),
        sections=read.sections,
        chat_template=read_chat_template(top),
        experts=_read_experts(top),
        out=_read_out(top),
    )
    policy = read_tokenizer_policy(top, recipe.all_sources, recipe.donor)
    return replace(recipe, tokenizer=policy)


def _refuse_stray_keys(top: Fields) -> None:
    """Refuse keys of the recipe among the knobs."""
    parameters = top.get("parameters")
    for key, field in parameters.fields.items() if isinstance(parameters, Fields) else ():
        if key in TOP_KEYS and key not in SHORTHANDS:
            raise field.place.error(
                f"{key}: a key of the recipe, no knob; write it beside parameters"
            )


def _read_method(top: Fields) -> Method:
    node = top.get("merge_method")
    known = methods()
    if node is None:
        place = top.place_of("merge_method")
        raise place.error(f"merge_method: missing; allowed: {listed(known)}")
    name = node.as_text("merge_method")
    if name in known:
        return known[name]
    hint = did_you_mean(name, known)
    raise node.place.error(
        f"merge_method: there is no method {name!r}; allowed: {listed(known)}.{hint}"
    )


def _read_dtype(top: Fields, key: str) -> DType | None:
    node = top.get(key)
    if node is None:
        return None
    text = node.as_text(key)
    name = text.removeprefix("torch.")
    if name in DTYPES:
        return DTYPES[name]
    message = f"{key} is {text!r}; allowed: {listed(DTYPES)}."
    if name == "float64":
        raise node.place.error(f"{message} Arithmetic is float32, so float64 would add nothing")
    nickname = _DTYPE_NICKNAMES.get(name)
    hint = f" Did you mean {nickname!r}?" if nickname else did_you_mean(name, DTYPES)
    raise node.place.error(message + hint)


def _read_seed(top: Fields) -> int:
    node = top.get("seed")
    if node is None:
        return 0
    seed = node.value if isinstance(node, Scalar) else None
    if isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < NUM_SEEDS:
        return seed
    raise node.place.error(f"seed is {node.shown}; allowed: a whole number from 0 to 2**64 - 1")


def _read_nan(top: Fields) -> NanPolicy:
    node = top.get("nan")
    if node is None:
        return "error"
    match node.as_text("nan"):
        case "error":
            return "error"
        case "pass":
            return "pass"
        case other:
            hint = did_you_mean(other, ("error", "pass"))
            raise node.place.error(f"nan is {other!r}; allowed: 'error' or 'pass'.{hint}")


def _read_experts(top: Fields) -> ExpertLayout:
    node = top.get("experts")
    if node is None:
        return "donor"
    match node.as_text("experts"):
        case "donor" | "separate" | "packed" as layout:
            return layout
        case other:
            hint = did_you_mean(other, ("donor", "separate", "packed"))
            raise node.place.error(
                f"experts is {other!r}; allowed: 'donor', 'separate' or 'packed'.{hint}"
            )


def _read_out(top: Fields) -> str | None:
    node = top.get("out")
    return None if node is None else node.as_text("out")


def _read_patterns(top: Fields, key: str) -> tuple[str, ...]:
    if key not in top.fields:
        return ()
    node = top.fields[key].node
    items = node.items if isinstance(node, Items) else (node,)
    if not items:
        raise node.place.error(
            f"{key} is an empty list; allowed: tensor-name patterns, or no {key}"
        )
    return tuple(item.as_text(key) for item in items)


def _idle_keys(top: Fields) -> list[str]:
    return [
        f"{fields.place_of(key)}: {key} has no effect: there is no table of architectures"
        for fields in top.walk()
        for key in IDLE_SOURCE_KEYS
        if fields.get(key) is not None
    ]
