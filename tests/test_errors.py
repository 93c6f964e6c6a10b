from __future__ import annotations

import pickle
from copy import copy

import pytest

from raymerge import errors
from raymerge.errors import RaymergeError

EXIT_CODES = {
    "RecipeError": 2,
    "PlanError": 2,
    "ConflictError": 2,
    "SourceError": 3,
    "StorageError": 3,
    "NonFiniteError": 1,
    "ClusterError": 1,
    "CommitError": 1,
    "VerifyError": 5,
}
BUILTINS = {
    "RecipeError": ValueError,
    "PlanError": ValueError,
    "SourceError": OSError,
    "StorageError": OSError,
    "NonFiniteError": ValueError,
}
FIELDS = {"source": "a", "tensor": "w", "file": "model.safetensors", "retryable": True}
EACH_ERROR = pytest.mark.parametrize("name", EXIT_CODES)


def kind(name: str) -> type[RaymergeError]:
    found: type[RaymergeError] = getattr(errors, name)
    assert issubclass(found, RaymergeError)
    return found


def test_the_table_has_every_error() -> None:
    assert {each.__name__ for each in RaymergeError.__subclasses__()} >= EXIT_CODES.keys()


@EACH_ERROR
def test_an_error_has_the_exit_code_of_the_command_line(name: str) -> None:
    assert kind(name).exit_code == EXIT_CODES[name]


@EACH_ERROR
def test_an_error_is_the_builtin_that_fits(name: str) -> None:
    assert issubclass(kind(name), BUILTINS.get(name, RaymergeError))


@EACH_ERROR
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_pickles_with_all_its_fields(name: str, protocol: int) -> None:
    error = kind(name)("what was found", **FIELDS)  # type: ignore[arg-type]
    back = pickle.loads(pickle.dumps(error, protocol))

    assert type(back) is type(error)
    assert back.as_json() == error.as_json() == {"type": name, "message": "what was found"} | FIELDS
    assert (str(back), back.message, back.source) == ("what was found", "what was found", "a")
    assert str(copy(error)) == str(error)


def test_an_error_with_its_message_alone_has_no_other_field() -> None:
    error = errors.PlanError("no")
    assert error.as_json() == {
        "type": "PlanError",
        "message": "no",
        "source": None,
        "tensor": None,
        "file": None,
        "retryable": False,
    }


def test_the_module_draws_every_error() -> None:
    for name, code in EXIT_CODES.items():
        (line,) = (
            line for line in (errors.__doc__ or "").splitlines() if line.split()[:1] == [name]
        )
        assert line.endswith(f"exit {code}")
