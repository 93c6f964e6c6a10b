"""What an evaluator is: the recipe's words, and what is in the files that they name."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest

from raymerge.sweep.evaluation import Fingerprint, fingerprint
from tests.sweep.blocks import parsed


def of_command(*arguments: str) -> Fingerprint:
    command = json.dumps([*arguments, "{checkpoint}"])
    return fingerprint(parsed(f" evaluate:\n  command: {command}"))


def of_python(target: str) -> Fingerprint:
    return fingerprint(parsed(f" evaluate: {{python: '{target}'}}"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return hashlib.sha256(text.encode()).hexdigest()


def test_nothing_evaluated_is_nothing() -> None:
    assert fingerprint(parsed(" scratchy: 1")) == Fingerprint("", {})


@pytest.mark.parametrize(
    "arguments",
    [
        ["python3", "score.py"],
        ["python3", "run.py", "--data=score.py"],
        ["sh", "-c", "python3 score.py $0"],
        ["./score.py"],
        ["python3", "-m", "score"],
    ],
)
def test_a_file_that_a_command_names_counts(folder: Path, arguments: list[str]) -> None:
    first = write(folder / "score.py", "print(1)\n")
    before = of_command(*arguments)
    # Beside it there may be a script that stands for python3.
    assert first in before.files.values()
    assert of_command(*arguments) == before

    second = write(folder / "score.py", "print(2)\n")
    after = of_command(*arguments)
    assert second in after.files.values()
    assert first not in after.files.values()
    assert after.digest != before.digest
    write(folder / "score.py", "print(1)\n")
    assert of_command(*arguments) == before


def test_a_script_that_is_found_by_path_counts_and_a_compiled_program_does_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256 = write(folder / "bin" / "judge", "#!/bin/sh\n")
    (folder / "bin" / "judge").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")
    assert of_command("judge").files == {"judge": sha256}
    assert of_command("cat").files == {}
    assert of_command(sys.executable).files.keys() == {sys.executable}


def test_the_words_count_and_folders_and_what_is_not_there_do_not(folder: Path) -> None:
    (folder / "data").mkdir()
    one = of_command("cat", "data", "gone.py", "\0", "")
    assert one.files == {}
    write(folder / "data" / "x.json", "{}")
    assert of_command("cat", "data", "gone.py", "\0", "") == one
    assert of_command("cat", "data", "gone.py") != one


def test_a_functions_file_counts_and_nothing_of_it_is_run(folder: Path) -> None:
    loud = "raise SystemExit('imported')\n"
    first = write(folder / "mine" / "judge.py", loud)
    write(folder / "mine" / "__init__.py", loud)
    assert of_python("mine/judge.py:score").files == {"mine/judge.py": first}
    assert of_python("mine.judge:score").files == {"mine.judge": first}
    assert of_python("mine:score").files.keys() == {"mine"}
    assert of_python("no.such.module:score").files == {}
    assert of_python("sys:exit").files == {}
    assert "mine" not in sys.modules


def test_what_has_changed_is_said(folder: Path) -> None:
    write(folder / "score.py", "1")
    write(folder / "data.json", "1")
    before = of_command("python3", "score.py", "data.json")
    write(folder / "data.json", "2")
    after = of_command("python3", "score.py", "data.json")
    assert after.why_again(before.files).startswith("data.json changed since")
    other = of_command("python3", "data.json")
    assert other.why_again(before.files).startswith("evaluate, split or a file that they name")
