"""A chat template is found where loaders look for it, in their order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raymerge.checkpoint.chat import chat_template
from raymerge.errors import SourceError
from raymerge.storage.posix import PosixFolder


def template(path: Path) -> str | None:
    folder = PosixFolder(path)
    return chat_template(folder, folder.sizes(), source="src")


def test_a_file_of_its_own_comes_before_one_in_a_config(tmp_path: Path) -> None:
    assert template(tmp_path) is None
    config = tmp_path / "tokenizer_config.json"
    config.write_text("{}")
    assert template(tmp_path) is None
    config.write_text(json.dumps({"chat_template": "old"}))
    assert template(tmp_path) == "old"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "newer"}))
    assert template(tmp_path) == "newer"
    (tmp_path / "chat_template.jinja").write_text("newest")
    assert template(tmp_path) == "newest"


def test_several_named_templates_are_one_text(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "a"}, {"name": "tools", "template": "b"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))

    assert json.loads(template(tmp_path) or "") == named


def test_a_config_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{")

    with pytest.raises(SourceError, match=r"tokenizer_config\.json"):
        template(tmp_path)
