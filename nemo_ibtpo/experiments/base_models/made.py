"""Model directories that the demos make once and use again.

A directory appears under its name only when it is complete, with a stamp that says what it was made from and which
files it consists of. What has no stamp was made by somebody else and is never touched.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nemo_ibtpo.config.errors import UserError

_STAMP = "MADE_FROM"  # without a suffix, so that a model made of this one does not inherit it


def is_made(directory: Path, digest: str) -> bool:
    """Whether ``directory`` is complete and was made from what ``digest`` stands for.

    Raises:
        UserError: there is something else under that name.
    """
    if not directory.exists():
        return False
    try:
        stamp = (directory / _STAMP).read_text(encoding="utf-8").splitlines()
    except OSError:
        raise UserError(
            f"{directory} was not made by the demo and is left alone; move it or give another --output-dir"
        ) from None
    return stamp == [digest, *_files(directory)]


@contextmanager
def making(directory: Path, digest: str) -> Iterator[Path]:
    """A temporary directory to fill; it takes the place of ``directory`` when the block ends without an error."""
    temporary = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    (temporary / _STAMP).write_text("\n".join([digest, *_files(temporary)]), encoding="utf-8")
    shutil.rmtree(directory, ignore_errors=True)
    temporary.rename(directory)


def _files(directory: Path) -> list[str]:
    """Name and size of every file beside the stamp."""
    files = sorted(path for path in directory.iterdir() if path.name != _STAMP)
    return [f"{path.stat().st_size} {path.name}" for path in files]
