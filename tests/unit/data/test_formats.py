"""Data as people have it: files of verl, slime, DAPO, GSM8K and MATH in their own fields, in all the spellings of a
file.

Not exercised: the published data sets themselves, which are not downloaded here.
"""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from byte_tokenizer import byte_tokenizer
from data_configs import data_config, dataset_config

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.loader import compose
from nemo_ibtpo.data.loading import load_problems
from nemo_ibtpo.data.problems import Problem
from nemo_ibtpo.data.sources import check_sources

TOKENIZER = byte_tokenizer()
TOKENIZER.chat_template = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if not (loop.last and m.role == 'assistant') %}</>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% if nothink %}<no>{% endif %}{% endif %}"
)
ROWS = [{"question": "1 + 1?", "answer": "2"}, {"question": "1 + 2?", "answer": "3"}]


def load(path: Path, data: dict[str, Any] | None = None, **changes: Any) -> list[Problem]:
    problems, _ = load_problems(dataset_config(path=str(path), **changes), data_config(**data or {}), TOKENIZER)
    return problems


def one(tmp_path: Path, row: dict[str, Any], data: dict[str, Any] | None = None, **changes: Any) -> Problem:
    file = tmp_path / "row.jsonl"
    file.write_text(json.dumps(row))
    return load(file, data, **changes)[0]


def refused(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(UserError) as caught:
        one(*args, **kwargs)
    return str(caught.value)


def prompt(problem: Problem) -> str:
    return TOKENIZER.decode(list(problem.prompt_tokens))


# Files


def write_jsonl(file: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("spelling", ["lines", "array", "gzip", "byte-order mark", "array with a mark, gzipped"])
def test_json_in_all_spellings(tmp_path: Path, spelling: str) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    content = {
        "lines": lines,
        "array": json.dumps(ROWS, indent=1).encode(),
        "gzip": gzip.compress(lines),
        "byte-order mark": b"\xef\xbb\xbf" + lines,
        "array with a mark, gzipped": gzip.compress(b"\xef\xbb\xbf" + json.dumps(ROWS).encode()),
    }[spelling]
    file = tmp_path / "rows.json"
    file.write_bytes(content)
    assert [(p.question, p.answer) for p in load(file)] == [("1 + 1?", "2"), ("1 + 2?", "3")]


def test_csv(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    with file.open("w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.writer(stream)
        writer.writerows([["question", "answer"], ['a, "b"\nc?', "2"], ["short"], ["1 + 2?", "3"]])
    problems, report = load_problems(dataset_config(source="csv", path=str(file)), data_config(), TOKENIZER)
    assert [p.question for p in problems] == ['a, "b"\nc?', "1 + 2?"]
    assert "1 x another number of cells than the header has" in report.summary()


def test_a_directory_with_splits_gives_the_one_that_is_asked_for(tmp_path: Path) -> None:
    for number, name in enumerate(("test-00000", "train-00000-of-2", "train-00001-of-2")):
        pq.write_table(
            pa.Table.from_pylist([{"question": f"{number}?", "answer": "1"}]), tmp_path / f"{name}.parquet"
        )
    questions = [p.question for p in load(tmp_path, source="parquet", split="train")]
    assert questions == ["1?", "2?"], "no test data in training"
    assert [p.question for p in load(tmp_path, source="parquet", split="test")] == ["0?"]
    with pytest.raises(UserError, match=r"files of several splits \(test, train\); set `split`"):
        load(tmp_path, source="parquet")
    with pytest.raises(UserError, match="no files of split 'dev'"):
        load(tmp_path, source="parquet", split="dev")
    with pytest.raises(UserError, match="subset=main is of Hugging Face"):
        check_sources(dataset_config(source="parquet", path=str(tmp_path), split="train", subset="main"))  # a dry run
    with pytest.raises(UserError, match="is one file; set split to null"):
        load(tmp_path / "test-00000.parquet", source="parquet", split="train")


def test_directories_may_be_the_splits(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train" / "a.jsonl")
    write_jsonl(tmp_path / "test" / "a.jsonl", [{"question": "held out", "answer": "1"}])
    assert len(load(tmp_path, split="train")) == 2


def test_a_glob(tmp_path: Path) -> None:
    for name in ("a1", "a2", "b1"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"question": name, "answer": "1"}])
    assert [p.question for p in load(tmp_path / "a*.jsonl")] == ["a1", "a2"]
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path / "c*.jsonl")


# Answers


def test_numbers_are_written_as_a_person_would(tmp_path: Path) -> None:
    values = {
        1e-05: "0.00001",
        2.0: "2",
        0.1: "0.1",
        1.5e21: "1500000000000000000000",
        7: "7",
        -2.5e-7: "-0.00000025",
    }
    for value, text in values.items():
        assert one(tmp_path, {"question": "q", "answer": value}).answer == text


@pytest.mark.parametrize(
    ("answer_from", "answer", "gold"),
    [
        ("hashes", "9 eggs * $2 = $18\n#### 18", "18"),
        ("hashes", "first\n#### 1,200 \n", "1,200"),
        ("boxed", "so \\boxed{1} or rather \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("boxed", "so \\fbox {7}", "7"),
        (r"answer: (\d+)", "answer: 1, no, answer: 22", "22"),
        (None, "#### in a line", "#### in a line"),
    ],
)
def test_a_gold_answer_within_a_solution(tmp_path: Path, answer_from: str | None, answer: str, gold: str) -> None:
    assert one(tmp_path, {"question": "q", "answer": answer}, answer_from=answer_from).answer == gold


def test_a_whole_solution_is_no_gold_answer(tmp_path: Path) -> None:
    row = {"question": "q", "answer": "9 * 2 = 18\n#### 18"}
    assert "set answer_from=hashes" in refused(tmp_path, row)
    assert "no answer where answer_from=boxed looks for it" in refused(tmp_path, row, answer_from="boxed")


def test_several_accepted_answers(tmp_path: Path) -> None:
    for value in (["0.5", "1/2"], '["0.5", "1/2"]'):
        problem = one(tmp_path, {"question": "q", "answer": value})
        assert (problem.answer, problem.metadata["accepted"]) == ("0.5", ["1/2"])
    assert "empty answer" in refused(tmp_path, {"question": "q", "answer": []})


def test_no_answer_at_all_is_for_reward_functions(tmp_path: Path) -> None:
    problem = one(tmp_path, {"question": "q", "level": 3, "when": None}, answer_key=None)
    assert (problem.answer, problem.metadata) == ("", {"row": {"level": 3, "when": None}})


# Prompts

CHAT = {"template": "chat", "prompt_format": "{question}"}


def message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("messages", "data", "text", "question"),
    [
        ([message("user", "hi")], {}, "<user>hi</><assistant>", "hi"),
        (
            [message("system", "s"), message("user", "hi")],
            {},
            "<system>s</><user>hi</><assistant>",
            "system: s\n\nuser: hi",
        ),
        ([message("user", "hi")], {"system_prompt": "s"}, "<system>s</><user>hi</><assistant>", "hi"),
        (
            [message("user", "a"), message("assistant", "b"), message("user", "c")],
            {"prompt_format": "{question}!"},
            "<user>a</><assistant>b</><user>c!</><assistant>",
            "user: a\n\nassistant: b\n\nuser: c",
        ),
        ([message("user", "hi"), message("assistant", "so")], {}, "<user>hi</><assistant>so", None),
        ([message("user", [{"type": "text", "text": "hi"}])], {}, "<user>hi</><assistant>", "hi"),
        ([message("user", "hi")], {"template_options": {"nothink": True}}, "<user>hi</><assistant><no>", "hi"),
    ],
)
def test_chat_messages(
    tmp_path: Path, messages: list[Any], data: dict[str, Any], text: str, question: str | None
) -> None:
    problem = one(tmp_path, {"question": messages, "answer": "1"}, CHAT | data)
    assert prompt(problem) == text
    assert question is None or problem.question == question


@pytest.mark.parametrize(
    ("messages", "data", "reason"),
    [
        ([message("user", "hi")], {"template": "plain"}, "chat messages, which template=plain does not take"),
        ([message("system", "s")], {}, "without one of the user"),
        ([message("system", "s"), message("user", "hi")], {"system_prompt": "t"}, "beside system_prompt"),
        ([message("narrator", "s")], {}, "role 'narrator'"),
        ([{"content": "s"}], {}, "no mapping of role and content"),
        ([message("user", [{"type": "image"}])], {}, "something else than text"),
        ([], {}, "no chat messages"),
    ],
)
def test_messages_that_make_no_prompt(tmp_path: Path, messages: list[Any], data: dict[str, Any], reason: str) -> None:
    assert reason in refused(tmp_path, {"question": messages, "answer": "1"}, CHAT | data)


def test_a_text_with_its_special_tokens_is_taken_as_it_is(tmp_path: Path) -> None:
    text = "<user>1 + 1?</><assistant>"
    problem = one(tmp_path, {"question": text, "answer": "2"}, {"template": "none"})
    assert prompt(problem) == text


def test_a_chat_template_without_the_beginning_of_sequence_is_told(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template, tokenizer.bos_token = TOKENIZER.chat_template, "<bos>"
    file = write_jsonl(tmp_path / "rows.jsonl")
    _, report = load_problems(dataset_config(path=str(file)), data_config(**CHAT), tokenizer)
    assert "prompts do not begin with <bos>" in report.summary()


# The formats by name; rows as their authors' files have them

VERL = {
    "data_source": "openai/gsm8k",
    "prompt": [message("user", "1 + 1?")],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "2"},
    "extra_info": {"index": 0, "split": "train"},
}
SLIME = {"prompt": [message("user", "1 + 1?")], "label": "2"}
GSM8K = {"question": "1 + 1?", "answer": "It is <<1+1=2>>2.\n#### 2"}
MATH = {"problem": "1 + 1?", "solution": "It is $\\boxed{2}$.", "level": "Level 1", "type": "Algebra"}


@pytest.mark.parametrize(
    ("name", "row"), [("verl", VERL), ("slime", SLIME), ("dapo_original", VERL), ("gsm8k", GSM8K), ("math", MATH)]
)
def test_formats_by_name(tmp_path: Path, name: str, row: dict[str, Any]) -> None:
    words = [f"data={name}", "model.path=/m", "data.train.path=/d", "data.validation.path=/d"]
    config = compose("tiny", [f"data={name}", *words[1:]]).data.train
    if config.source in ("parquet", "huggingface"):
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / "train.parquet")
    else:
        write_jsonl(tmp_path / "train.jsonl", [row])
    changes = {"source": "jsonl" if config.source == "jsonl" else "parquet", "split": None}
    keys = {key: getattr(config, key) for key in ("question_key", "answer_key", "answer_from", "verifier")}
    (problem,) = load(tmp_path, CHAT, **changes, **keys)
    assert (problem.question, problem.answer, problem.verifier) == ("1 + 1?", "2", "math")
