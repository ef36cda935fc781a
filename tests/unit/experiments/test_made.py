"""A demo that runs twice must neither make its model again nor use a broken or foreign one.

Real directories; a crash is an exception in the block that fills one. Not exercised: a crash of the machine.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.experiments.base_models.made import is_made, making


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "runs" / "model"
    with making(directory, "digest 1") as unfinished:
        assert not directory.exists()
        (unfinished / "config.json").write_text("{}")
        (unfinished / "weights").write_bytes(b"1234")
    return directory


def test_a_complete_directory_is_recognised(directory: Path) -> None:
    assert is_made(directory, "digest 1")
    assert sorted(path.name for path in directory.parent.iterdir()) == ["model"]


def test_nothing_is_there_at_first(tmp_path: Path) -> None:
    assert not is_made(tmp_path / "model", "digest 1")


def test_another_digest_is_another_model(directory: Path) -> None:
    assert not is_made(directory, "digest 2")


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_bytes(b"123")])
def test_a_damaged_directory_is_made_again(directory: Path, damage: Callable[[Path], object]) -> None:
    damage(directory / "weights")
    assert not is_made(directory, "digest 1")


def test_a_crash_leaves_what_was_there(directory: Path) -> None:
    with pytest.raises(RuntimeError), making(directory, "digest 2") as unfinished:
        (unfinished / "config.json").write_text("half")
        raise RuntimeError
    assert is_made(directory, "digest 1")
    with making(directory, "digest 2") as unfinished:
        assert list(unfinished.iterdir()) == [], "the leavings of the crash are gone"
    assert is_made(directory, "digest 2")
    assert not (directory / "config.json").exists()


@pytest.mark.parametrize("name", ["model", "empty"])
def test_a_directory_of_somebody_else_is_refused(tmp_path: Path, name: str) -> None:
    foreign = tmp_path / name
    foreign.mkdir()
    if name == "model":
        (foreign / "config.json").write_text("mine")
    with pytest.raises(UserError, match=rf"{name} was not made by the demo and is left alone; move it or"):
        is_made(foreign, "digest 1")
