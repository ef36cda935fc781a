"""Checkpoints on disk: what is in place is whole, and damage is seen before anything is loaded.

Why it matters: a torn checkpoint that is taken for a whole one costs the run; one that is pruned too early too. Dying
is simulated by stopping between two calls. Not exercised: a file system that loses what it was told to sync.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemo_ibtpo.checkpoints.directory import CheckpointDirectory, check_quickly, read_run, write_run
from nemo_ibtpo.checkpoints.manifest import (
    FILE_NAME,
    DamagedError,
    describe,
    file_names,
    find_damage,
    read_manifest,
    write_manifest,
)


def fill(directory: Path, accuracy: float | None = None) -> None:
    (directory / "megatron").mkdir(parents=True)
    (directory / "megatron" / "shard").write_bytes(bytes(range(256)) * 20)
    write_run(directory, {"accuracy": accuracy})
    write_manifest(directory, describe(directory, file_names(directory), sync=True))


def save(checkpoints: CheckpointDirectory, step: int, accuracy: float | None = None) -> None:
    checkpoints.begin(step)
    fill(checkpoints.unfinished(step), accuracy)
    checkpoints.commit(step)


@pytest.fixture
def checkpoints(tmp_path: Path) -> CheckpointDirectory:
    return CheckpointDirectory(tmp_path / "checkpoints", keep_last=2, keep_best=1)


def test_newest_and_best_are_kept(checkpoints: CheckpointDirectory) -> None:
    assert checkpoints.steps() == []
    for step, accuracy in ((1, 0.2), (2, 0.9), (3, None), (4, 0.5), (10, 0.6), (11, None)):
        save(checkpoints, step, accuracy)
        assert (checkpoints.root / "latest").resolve().name == f"step_{step}"
    assert checkpoints.steps() == [11, 10, 2]
    assert sorted(path.name for path in checkpoints.root.iterdir()) == ["latest", "step_10", "step_11", "step_2"]


def test_what_an_attempt_left_is_not_taken_for_a_checkpoint(checkpoints: CheckpointDirectory) -> None:
    save(checkpoints, 1)
    checkpoints.begin(2)
    fill(checkpoints.unfinished(2))  # and here it dies
    assert checkpoints.steps() == [1]
    save(checkpoints, 2)
    assert checkpoints.steps() == [2, 1]
    assert not list(checkpoints.root.glob(".*"))


def test_a_checkpoint_set_aside_is_kept_and_not_used(checkpoints: CheckpointDirectory) -> None:
    save(checkpoints, 1)
    save(checkpoints, 2)
    assert checkpoints.set_aside(2).name == "set_aside_step_2.1"
    assert checkpoints.steps() == [1]
    save(checkpoints, 2)
    checkpoints.set_aside(2)
    for step in (3, 4, 5):
        save(checkpoints, step)
    names = {path.name for path in checkpoints.root.iterdir()}
    assert names == {"latest", "step_4", "step_5", "set_aside_step_2.1", "set_aside_step_2.2"}


def test_every_kind_of_damage_is_named(tmp_path: Path) -> None:
    fill(tmp_path)
    shard = tmp_path / "megatron" / "shard"
    files = check_quickly(tmp_path)
    assert list(files) == ["megatron/shard", "run.json"]
    assert find_damage(tmp_path, list(files), files) is None

    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + b"x")  # the same size
    assert find_damage(tmp_path, list(files), files) == (
        "megatron/shard does not have the content that was saved (SHA-256)"
    )
    shard.write_bytes(content[:-1])
    with pytest.raises(DamagedError, match=r"megatron/shard has 5119 bytes instead of 5120"):
        read_manifest(tmp_path)
    shard.unlink()
    with pytest.raises(DamagedError, match="megatron/shard is missing"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "it was never finished"),
        ("{", "cannot be read"),
        ("[]", "its format is None"),
        (json.dumps({"schema": "nemo_ibtpo.checkpoint/9", "files": {}}), r"its format is 'nemo_ibtpo.checkpoint/9'"),
    ],
)
def test_a_foreign_manifest_is_refused(tmp_path: Path, content: str | None, reason: str) -> None:
    fill(tmp_path)
    (tmp_path / FILE_NAME).unlink()
    if content is not None:
        (tmp_path / FILE_NAME).write_text(content)
    with pytest.raises(DamagedError, match=reason):
        check_quickly(tmp_path)


def test_weights_alone_are_no_checkpoint_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "shard").write_text("x")
    write_manifest(tmp_path, describe(tmp_path, ["shard"]))
    with pytest.raises(DamagedError, match=r"does not name run\.json"):
        check_quickly(tmp_path)
    with pytest.raises(DamagedError, match=r"run\.json cannot be read"):
        read_run(tmp_path)
