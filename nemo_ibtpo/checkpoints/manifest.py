"""What a whole checkpoint consists of: every file with its size and SHA-256.

The manifest is written last, so that a directory without one was never finished. Hashing is dealt over the ranks
(``file_names``, ``describe``), since a large checkpoint is terabytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_ibtpo.files import sync_directory, write_atomically

FILE_NAME = "manifest.json"
SCHEMA = "nemo_ibtpo.checkpoint/1"


class DamagedError(Exception):
    """A checkpoint is not whole; the message is the reason."""


def file_names(directory: Path) -> list[str]:
    """Every file below the directory but the manifest, relative and sorted."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return sorted(str(path.relative_to(directory)) for path in files if path != directory / FILE_NAME)


def describe(directory: Path, names: Sequence[str], *, sync: bool = False) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of files; with ``sync`` they are on the disk when the call returns."""
    return {name: _describe(directory / name, sync=sync) for name in names}


def digest_of(files: Mapping[str, Mapping[str, Any]]) -> str:
    """One SHA-256 of what :func:`describe` returned."""
    return hashlib.sha256(json.dumps(dict(sorted(files.items()))).encode()).hexdigest()


def write_manifest(directory: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Declare the checkpoint whole."""
    content = {"schema": SCHEMA, "files": dict(sorted(files.items()))}
    write_atomically(directory / FILE_NAME, json.dumps(content, indent=1) + "\n")
    for path in (directory, *(path for path in directory.rglob("*") if path.is_dir())):
        sync_directory(path)


def read_manifest(directory: Path) -> dict[str, dict[str, Any]]:
    """The files that belong to the checkpoint, all of which are there in their size.

    Raises:
        DamagedError: it was never finished, was written by something else, or files are missing or torn.
    """
    try:
        content = json.loads((directory / FILE_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DamagedError(f"it has no {FILE_NAME}: it was never finished, or is no checkpoint") from None
    except (OSError, ValueError) as error:
        raise DamagedError(f"{FILE_NAME} cannot be read: {error}") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        found = content.get("schema") if isinstance(content, dict) else None
        raise DamagedError(f"its format is {found!r}, this program reads {SCHEMA!r}")
    files: dict[str, dict[str, Any]] = content["files"]
    for name, record in files.items():
        path = directory / name
        if not path.is_file():
            raise DamagedError(f"{name} is missing")
        if (size := path.stat().st_size) != record["bytes"]:
            raise DamagedError(f"{name} has {size} bytes instead of {record['bytes']}")
    return files


def find_damage(directory: Path, names: Sequence[str], files: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The first of the named files whose content is not what the manifest says, in words."""
    for name in names:
        try:
            if _describe(directory / name, sync=False) != files[name]:
                return f"{name} does not have the content that was saved (SHA-256)"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return None


def _describe(path: Path, *, sync: bool) -> dict[str, Any]:
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": digest}
