"""The error tree: stable codes, exit codes, everything exported and drawn."""

from __future__ import annotations

import llavakit
from llavakit.core import errors
from llavakit.core.errors import LlavakitError


def walk(base: type[LlavakitError]) -> list[type[LlavakitError]]:
    return [base, *(found for child in base.__subclasses__() for found in walk(child))]


TREE = [error for error in walk(LlavakitError) if error.__module__ == errors.__name__]

# Scripts depend on these: a change here is a breaking change and belongs into the changelog.
EXPECTED = {
    "error": 1,
    "config": 2,
    "unsupported-attribute": 2,
    "weights": 3,
    "weights-format": 3,
    "weights-missing": 3,
    "weights-unexpected": 3,
    "weights-shape": 3,
    "store": 4,
    "model-not-found": 4,
    "download": 4,
    "disk-full": 4,
    "request": 5,
    "bad-image": 5,
    "image-source": 5,
    "prompt": 5,
    "context-overflow": 5,
    "sampling": 5,
    "constraint": 5,
    "unsupported-field": 5,
    "refused": 5,
    "capacity": 6,
    "overloaded": 6,
    "unloaded": 6,
    "non-finite": 7,
    "missing-dependency": 8,
    "access": 9,
}


def test_codes_and_exit_codes_are_stable() -> None:
    assert {error.code: error.exit_code for error in TREE} == EXPECTED
    assert len(TREE) == len(EXPECTED), "two classes share a code"


def test_every_class_says_its_own_code() -> None:
    for error in TREE:
        assert "code" in vars(error), f"{error.__name__} inherits its code"


def test_every_error_of_the_package_is_in_the_tree() -> None:
    strays = {error.__name__ for error in walk(LlavakitError)} - {error.__name__ for error in TREE}
    assert not strays


def test_drawing_and_exports_name_every_class() -> None:
    names = {error.__name__ for error in TREE}
    assert set(errors.__all__) == names
    drawing = (errors.__doc__ or "").splitlines()
    for name in names:
        assert any(line.lstrip("│├└─ ").split(" ")[0] == name for line in drawing), name
    for name in names:
        assert getattr(llavakit, name) is getattr(errors, name)


def test_errors_carry_their_message() -> None:
    for error in TREE:
        assert str(error("what failed")) == "what failed"
