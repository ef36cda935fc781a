"""A study that was killed must go on, and must not mix samples of two settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.experiments.sampler_comparison.equal_tokens import Record
from nemo_ibtpo.experiments.sampler_comparison.sampling_runs import open_store

IDENTITY = {"seed": 1, "samplers": {"ib": {"rounds": 9}}}
FIRST = Record("ib", "p", (1.0, 0.0), 9, 8, 12, 0.5, 3, 1)


def test_records_are_there_again(tmp_path: Path) -> None:
    store = open_store(tmp_path / "study", IDENTITY)
    second = replace(FIRST, prompt_id="q")
    store.add(FIRST)
    store.add(second)
    assert list(open_store(tmp_path / "study", IDENTITY).records.values()) == [FIRST, second]


def test_a_line_that_a_kill_left_unfinished_is_cut_off(tmp_path: Path) -> None:
    open_store(tmp_path, IDENTITY).add(FIRST)
    with (tmp_path / "samples.jsonl").open("a") as file:
        file.write('{"sampler": "ib", "prom')
    again = open_store(tmp_path, IDENTITY)
    assert len(again.records) == 1
    again.add(replace(FIRST, prompt_id="q"))
    assert len(open_store(tmp_path, IDENTITY).records) == 2


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    open_store(tmp_path, IDENTITY)
    for identity, message in [
        ({**IDENTITY, "seed": 2}, "holds another study: seed was 1 and is 2; choose another output_dir"),
        ({**IDENTITY, "samplers": {"ib": {"rounds": 3}}}, r"samplers.ib.rounds was 9 and is 3"),
    ]:
        with pytest.raises(UserError, match=message):
            open_store(tmp_path, identity)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    open_store(tmp_path, IDENTITY)
    (tmp_path / "samples.jsonl").write_text('{"sampler": "ib"}\n')
    with pytest.raises(UserError, match=r"samples.jsonl:1 is no record of this study"):
        open_store(tmp_path, IDENTITY)
