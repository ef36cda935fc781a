"""An evaluation that asks for the model's own sampling gets what its file says, or a line that says why not.

Why it matters: a model that is sampled otherwise than its makers meant scores lower, and nobody sees why. Not
exercised: what engines do with the values (``tests/unit/rollout``).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from model_directories import write_model_directory

from nemo_ibtpo import cli
from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.generation_config import TAKEN, with_own_sampling
from nemo_ibtpo.config.loader import compose_evaluation

ROLLOUT = compose_evaluation("math500", ["model.path=m", "output_dir=o"]).rollout
QWEN = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}


def taken(model: Path, content: Any) -> tuple[Any, ...]:
    (model / "generation_config.json").write_text(content if isinstance(content, str) else json.dumps(content))
    own = with_own_sampling(ROLLOUT, model)
    assert own.max_new_tokens == ROLLOUT.max_new_tokens
    return tuple(getattr(own, name) for name in TAKEN)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (QWEN | {"do_sample": True, "eos_token_id": [1, 2], "max_new_tokens": 9}, (0.7, 0.8, 20, 1.05)),
        ({"do_sample": True, "temperature": 1, "min_p": 0.0, "num_beams": 1}, (1.0, 1.0, 50, 1.0)),
        ({"do_sample": True, "top_k": 0, "top_p": None, "renormalize_logits": False}, (1.0, 1.0, 0, 1.0)),
        (QWEN | {"do_sample": False}, (1.0, 1.0, 1, 1.05)),
    ],
)
def test_what_a_file_says(tmp_path: Path, content: dict[str, Any], expected: tuple[float, ...]) -> None:
    assert taken(tmp_path, content) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"do_sample": True, "min_p": 0.05}, "asks for min_p=0.05, which no engine here does"),
        ({"do_sample": True, "no_repeat_ngram_size": 3}, "no_repeat_ngram_size=3"),
        ({"do_sample": True, "watermarking_config": {}}, "watermarking_config={}"),
        ({"temperature": 0.6}, "does not say do_sample"),
        ({"do_sample": True, "temperature": 0.0}, "has temperature=0.0, out of range"),
        ({"do_sample": True, "top_p": 1.5}, "has top_p=1.5, out of range"),
        ({"do_sample": True, "top_k": "20"}, 'has top_k="20", out of range'),
        ("{", "is corrupt"),
        ([], "a JSON object is expected"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        taken(tmp_path, content)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_plan_says_what_is_in_effect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model_directory(tmp_path / "m")
    taken(tmp_path / "m", QWEN | {"do_sample": True})
    (tmp_path / "p.jsonl").write_text('{"question": "q", "answer": "1"}\n')
    words = [
        "eval",
        f"model.path={tmp_path}/m",
        f"output_dir={tmp_path}/o",
        "benchmark=jsonl",
        "rollout=transformers",
    ]
    words += [f"benchmark.data.path={tmp_path}/p.jsonl", "rollout.max_new_tokens=64", "sampling=generation_config"]
    assert cli.main([*words, "--dry-run"]) == 0
    said = "temperature 0.7, top_p 0.8, top_k 20, repetition_penalty 1.05 (of generation_config.json), seed 1"
    assert said in capsys.readouterr().out


def test_two_answers_to_one_question(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["eval", f"model.path={tmp_path}", "output_dir=o", "benchmark=math500", "sampling=generation_config"]
    assert cli.main([*words, "rollout.top_p=1"]) == 2
    assert "'rollout.top_p=1' on the command line: sampling=generation_config decides it" in capsys.readouterr().err
    assert cli.main(words) == 2
    assert "generation_config.json cannot be read: No such file" in capsys.readouterr().err
