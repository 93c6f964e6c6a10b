"""Merge models of a few hundred parameters by every method, so that their kernels are cached.

An image runs this once while it is built, with NUMBA_CACHE_DIR inside the image. Kernels of sweeps,
adapters and FP8 sources are compiled where they are first needed.
"""

from __future__ import annotations

import json
import struct
import tempfile
from pathlib import Path
from random import Random

import raymerge

KNOBS = {
    "arcee_fusion": "",
    "breadcrumbs": "density: 0.5, gamma: 0.1, weight: 1",
    "breadcrumbs_ties": "density: 0.5, gamma: 0.1, weight: 1",
    "dare_linear": "density: 0.5, weight: 1",
    "dare_ties": "density: 0.5, weight: 1",
    "della": "density: 0.5, epsilon: 0.1, weight: 1",
    "della_linear": "density: 0.5, epsilon: 0.1, weight: 1",
    "karcher": "max_iter: 2",
    "linear": "weight: 1",
    "model_stock": "",
    "multislerp": "weight: 1",
    "nearswap": "t: 0.1",
    "nuslerp": "weight: 1",
    "passthrough": "scale: 0.5",
    "ram": "",
    "ramplus_tl": "",
    "sce": "select_topk: 0.5",
    "slerp": "t: 0.5",
    "task_arithmetic": "weight: 1",
    "ties": "density: 0.5, weight: 1",
}
ONE_SOURCE = {"arcee_fusion", "nearswap", "passthrough", "slerp"}
WITHOUT_BASE = {"karcher", "linear", "passthrough"}
DTYPES = {"BF16": "H", "F16": "H", "F32": "I"}
ONE = {"BF16": 0x3F80, "F16": 0x3C00, "F32": 0x3F800000}
"""The bits of 1.0, to which a few low ones are added."""


def write_model(folder: Path, dtype: str, seed: int) -> None:
    """A checkpoint of one matrix and one vector, near 1."""
    draw = Random(seed)  # noqa: S311 - nothing secret
    code = DTYPES[dtype]
    shapes = {"model.layers.0.mlp.weight": [16, 32], "model.norm.weight": [32]}
    header, blob = {}, b""
    for name, shape in shapes.items():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        bits = [ONE[dtype] + draw.randrange(64) for _ in range(count)]
        data = struct.pack(f"<{count}{code}", *bits)
        offsets = [len(blob), len(blob) + len(data)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        blob += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + blob)


def main() -> None:
    """Merge by each method from each dtype that models are stored in."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        for dtype in DTYPES:
            for seed, model in enumerate(("base", "a", "b")):
                write_model(place / f"{dtype}-{model}", dtype, seed)
            for method, knobs in KNOBS.items():
                models = ["a"] if method in ONE_SOURCE else ["a", "b"]
                base = "" if method in WITHOUT_BASE else f"base_model: {place}/{dtype}-base\n"
                listed = ", ".join(f"{place}/{dtype}-{model}" for model in models)
                recipe = place / "recipe.yaml"
                recipe.write_text(
                    f"merge_method: {method}\n{base}models: [{listed}]\nparameters: {{{knobs}}}\n"
                )
                out = place / f"{dtype}-{method}"
                raymerge.merge(recipe, out, engine="local", device="cpu", workers=1)


if __name__ == "__main__":
    main()
