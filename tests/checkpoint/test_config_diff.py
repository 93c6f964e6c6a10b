from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from raymerge.checkpoint.catalog import read_catalog
from raymerge.checkpoint.config_diff import config_differences
from raymerge.storage.posix import PosixFolder
from tests.checkpoints import write_checkpoint


def differences(tmp_path: Path, **configs: dict[str, Any]) -> tuple[str, ...]:
    """Differences between sources with these configs and whatever else lies in their folders."""
    folders = {}
    for label, config in configs.items():
        write_checkpoint(tmp_path / label, {"a": torch.zeros(1)}, config=config)
        folders[label] = PosixFolder(tmp_path / label)
    catalogs = [read_catalog(folder, label=label) for label, folder in folders.items()]
    return config_differences(catalogs, folders)


def write(path: Path, name: str, content: object) -> None:
    path.mkdir(exist_ok=True)
    (path / name).write_text(json.dumps(content))


def test_each_answer_is_shown_once_with_the_sources_that_gave_it(tmp_path: Path) -> None:
    lines = differences(
        tmp_path,
        a={"rope_parameters": {"rope_theta": 500000.0}, "eos_token_id": [1, 2]},
        b={"rope_parameters": {"rope_theta": 10000.0}, "eos_token_id": 1},
        c={"rope_parameters": {"rope_theta": 500000.0}, "eos_token_id": [1, 2], "new": True},
    )

    assert lines == (
        "config.json: eos_token_id is [1, 2] (a, c), 1 (b)",
        "config.json: new is absent (a, b), true (c)",
        "config.json: rope_parameters.rope_theta is 500000.0 (a, c), 10000.0 (b)",
    )


def test_bookkeeping_and_the_order_of_keys_are_no_difference(tmp_path: Path) -> None:
    a = {
        "transformers_version": "4.0",
        "_name_or_path": "x",
        "torch_dtype": "float16",
        "p": 1,
        "q": 2,
    }

    assert differences(tmp_path, a=a, b={"q": 2, "p": 1, "dtype": "bfloat16"}) == ()


def test_tokenizer_files_are_compared_by_content(tmp_path: Path) -> None:
    for label, token in {"a": "x", "b": "y", "c": "x"}.items():
        write(tmp_path / label, "tokenizer.json", {"vocab": token})
        write(tmp_path / label, "merges.txt", "same")
    write(tmp_path / "a", "chat_template.jinja", "hi")

    template, tokenizer = differences(tmp_path, a={}, b={}, c={})

    assert template.startswith("chat_template.jinja: 4 bytes, sha256 ")
    assert template.endswith("(a), absent (b, c)")
    assert "(a, c), 14 bytes, sha256" in tokenizer


def test_generation_configs_are_compared_key_by_key(tmp_path: Path) -> None:
    write(tmp_path / "a", "generation_config.json", {"temperature": 0.6, "top_p": 0.9})
    write(tmp_path / "b", "generation_config.json", {"temperature": 0.7, "top_p": 0.9})

    assert differences(tmp_path, a={}, b={}) == (
        "generation_config.json: temperature is 0.6 (a), 0.7 (b)",
    )


def test_a_source_without_a_folder_has_its_config_compared(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {"a": torch.zeros(1)}, config={"a": 1})
    folder = PosixFolder(tmp_path)
    catalogs = [read_catalog(folder, label=label) for label in ("x", "y")]

    assert config_differences(catalogs, {}) == ()
