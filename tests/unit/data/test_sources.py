"""Rows come out of real files and directories as they were written, and whatever is wrong with a source is
said in one line that names it.

A run that trains on fewer problems than its user believes, or on others, looks like any other run. Not
exercised: downloads from the Hugging Face hub (only that a data set which cannot be had is said so).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from data_configs import dataset_config

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.schema import DatasetConfig
from nemo_ibtpo.data.rows import BadRow
from nemo_ibtpo.data.sources import read_rows

ROWS = [{"question": "1 + 1?", "answer": "2"}, {"question": "2 + 2?", "answer": "4"}]


def rows_of(config: DatasetConfig) -> list[Any]:
    return [row for _, row in read_rows(config)]


def refusal(**changes: Any) -> str:
    with pytest.raises(UserError) as error:
        rows_of(dataset_config(**changes))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_jsonl_locates_every_row_and_passes_bad_lines_on(tmp_path: Path) -> None:
    file = tmp_path / "problems.jsonl"
    file.write_bytes(b'{"question": "q"}\n\n[1, 2]\n{"question": \n\xff\xfe\n{"a": "\\u00e9"}\n')
    assert list(read_rows(dataset_config(path=str(file)))) == [
        (f"{file}:1", {"question": "q"}),
        (f"{file}:3", BadRow("not a JSON object")),
        (f"{file}:4", BadRow("invalid JSON")),
        (f"{file}:5", BadRow("invalid JSON")),
        (f"{file}:6", {"a": "é"}),
    ]


def test_jsonl_nested_beyond_the_parser_is_a_bad_row(tmp_path: Path) -> None:
    file = tmp_path / "problems.jsonl"
    file.write_text("[" * 100_000 + "\n")
    assert rows_of(dataset_config(path=str(file))) == [BadRow("invalid JSON")]


def test_a_missing_file_and_a_directory_are_named(tmp_path: Path) -> None:
    assert "nowhere.jsonl does not exist" in refusal(path="nowhere.jsonl")
    assert f"directory {tmp_path} holds no *.parquet file" in refusal(source="parquet", path=str(tmp_path))


def test_parquet(tmp_path: Path) -> None:
    file = tmp_path / "problems.parquet"
    nested = [{"question": "q", "reward_model": {"ground_truth": "7"}}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(nested), file)
    assert list(read_rows(dataset_config(source="parquet", path=str(file)))) == [(f"{file} row 1", nested[0])]


def test_a_file_that_is_no_parquet_is_said_so(tmp_path: Path) -> None:
    file = tmp_path / "problems.parquet"
    file.write_text("{}")
    assert f"cannot read {file} as Parquet" in refusal(source="parquet", path=str(file))


def test_a_directory_is_all_its_files_in_order(tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    for name, row in (("b.jsonl", ROWS[1]), ("a.jsonl", ROWS[0]), ("part/c.jsonl", {"question": "3"})):
        (tmp_path / name).write_text(json.dumps(row) + "\n")
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / name.replace("jsonl", "parquet"))
    (tmp_path / "README.md").write_text("no data")
    for source in ("jsonl", "parquet"):
        assert rows_of(dataset_config(source=source, path=str(tmp_path))) == [*ROWS, {"question": "3"}]


def test_several_subsets_are_read_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a clone of a data set's repository has them; AIME 2025 comes in two."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    clone = tmp_path / "clone"
    clone.mkdir()
    configs = ["configs:"]
    for name, row in zip(("I", "II"), ROWS, strict=True):
        (clone / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
        configs += [f"- config_name: {name}", f"  data_files: [{{split: test, path: {name}.jsonl}}]"]
    (clone / "README.md").write_text("\n".join(["---", *configs, "---"]))
    both = dataset_config(source="huggingface", path=str(clone), subset="I,II", split="test")
    assert rows_of(both) == ROWS
    assert "(subset III)" in refusal(source="huggingface", path=str(clone), subset="I,III", split="test")


def test_huggingface_saved_to_disk(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "single")
    both = datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS), test=datasets.Dataset.from_list(ROWS[:1]))
    both.save_to_disk(tmp_path / "splits")
    single, splits = str(tmp_path / "single"), str(tmp_path / "splits")
    assert rows_of(dataset_config(source="huggingface", path=single)) == ROWS
    assert rows_of(dataset_config(source="huggingface", path=splits, split="test")) == ROWS[:1]
    assert "set `split` to one of: train, test" in refusal(source="huggingface", path=splits)
    assert "no split 'dev'; its splits: train, test" in refusal(source="huggingface", path=splits, split="dev")
    assert "saved as a single split" in refusal(source="huggingface", path=single, split="train")


def test_huggingface_directory_of_data_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert rows_of(dataset_config(source="huggingface", path=str(tmp_path / "data"))) == ROWS


def test_a_data_set_that_cannot_be_had_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    line = refusal(source="huggingface", path="nobody/no-such-data-set", subset="all")
    assert line.startswith("cannot load data set nobody/no-such-data-set (subset all): ")


def test_reasoning_gym_makes_the_entries_its_own_library_makes() -> None:
    from reasoning_gym.factory import create_dataset

    options = {"min_terms": 2, "max_terms": 2}
    config = dataset_config(source="reasoning_gym", path="chain_sum", size=3, seed=5, options=options)
    entries = [json.loads(json.dumps(entry)) for entry in create_dataset("chain_sum", **options, size=3, seed=5)]
    for row, entry in zip(rows_of(config), entries, strict=True):
        assert {key: row[key] for key in ("question", "answer")} == {
            key: entry[key] for key in ("question", "answer")
        }
        assert row["metadata"] == {"task": "chain_sum", "options": options, "entry": entry}


def test_reasoning_gym_makes_the_same_problems_whatever_the_hash_seed() -> None:
    """ransom_note draws from a set of strings: made in this process, its problems change from run to run."""
    program = (
        "import sys; from data_configs import dataset_config; from nemo_ibtpo.data.sources import read_rows\n"
        "config = dataset_config(source='reasoning_gym', path='ransom_note', size=3)\n"
        "print([row['question'] for _, row in read_rows(config)])"
    )

    def questions(hash_seed: str) -> str:
        env = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        return subprocess.run(
            [sys.executable, "-c", program], env=env, check=True, capture_output=True, text=True
        ).stdout

    assert questions("1") == questions("2")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"path": "chain_sums"}, "unknown reasoning-gym task 'chain_sums'; did you mean chain_sum"),
        ({"options": {"max_term": 3}}, "'chain_sum' has no option 'max_term'; it has: "),
        ({"options": {"seed": 3}}, "'chain_sum' has no option 'seed'; it has: "),  # it is a key of its own
        ({"options": {"min_terms": 9, "max_terms": 2}}, "'chain_sum' refuses its options {'min_terms': 9"),
        ({"size": None}, "set `size` to the number of problems"),
    ],
)
def test_reasoning_gym_refusals(changes: dict[str, Any], line: str) -> None:
    ordinary = {"source": "reasoning_gym", "path": "chain_sum", "size": 2}
    assert line in refusal(**ordinary | changes)
