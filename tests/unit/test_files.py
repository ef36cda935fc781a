"""Files that are whole whenever somebody looks. Not exercised: a loss of power."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_ibtpo.config.dotted import by_dotted_key
from nemo_ibtpo.files import drop_cut_off_line, write_atomically


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in ("früher", b"\xff\x00"):
        write_atomically(path, content)
        assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
        assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    ("content", "whole"), [("a\nb\nc", "a\nb\n"), ("a\nb\n", "a\nb\n"), ("a", ""), ("", ""), (None, None)]
)
def test_a_line_that_a_kill_cut_off_is_dropped(tmp_path: Path, content: str | None, whole: str | None) -> None:
    path = tmp_path / "lines"
    if content is not None:
        path.write_text(content)
    drop_cut_off_line(path)
    assert (path.read_text() if path.exists() else None) == whole


def test_nested_settings_by_dotted_key() -> None:
    nested = {"a": {"b": 1, "c": {"d": None}}, "e": {}, "f": [1, 2]}
    assert by_dotted_key(nested) == {"a.b": 1, "a.c.d": None, "e": {}, "f": [1, 2]}
