"""Verifier ``ifeval`` in real workers: the maintained checks judge whole responses, always alike, without a network.

Not exercised: the two instructions that need nltk's punkt_tab data, where that is not installed (they are refused).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from byte_tokenizer import byte_tokenizer
from reward_settings import reward_config

from nemo_ibtpo.data.problems import Problem
from nemo_ibtpo.rewards.pool import Outcome, VerifierPool
from nemo_ibtpo.rewards.verifiers import ifeval

pytestmark = pytest.mark.skipif(not ifeval.is_installed(), reason="extra `eval` (lm-eval) is not installed")
TOKENIZER = byte_tokenizer()


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    pool = VerifierPool(TOKENIZER, reward_config(num_workers=1, timeout_s=10.0))
    yield pool
    pool.close()


def problem(*instructions: tuple[str, dict[str, Any]], prompt_id: str = "p") -> Problem:
    names, arguments = [name for name, _ in instructions], [given for _, given in instructions]
    metadata = {"instruction_id_list": names, "kwargs": arguments}
    return Problem(prompt_id, "Do as you are told.", ", ".join(names), "ifeval", metadata, ())


def outcomes(pool: VerifierPool, asked: Problem, texts: list[str]) -> list[Outcome]:
    pool.set_problems([asked])
    for key, text in enumerate(texts):
        pool.submit(key, asked.problem_id, tuple(TOKENIZER(text).input_ids))
    got: dict[Any, Outcome] = {}
    deadline = time.monotonic() + 60
    while len(got) < len(texts):
        assert time.monotonic() < deadline
        got.update((key, judgement.outcome) for key, judgement in pool.poll_judgements())
        time.sleep(0.005)
    return [got[key] for key in range(len(texts))]


def test_every_instruction_must_be_followed(pool: VerifierPool) -> None:
    asked = problem(
        ("punctuation:no_comma", {}), ("length_constraints:number_words", {"num_words": 4, "relation": "at least"})
    )
    texts = ["one two three four", "one, two three four", "one two", "<eos>"]
    assert outcomes(pool, asked, texts) == ["correct", "wrong", "wrong", "unparsable"]
    assert pool.answer("p", tuple(TOKENIZER(texts[0]).input_ids)) == texts[0], "no box is asked for"


def test_language_detection_does_not_depend_on_chance(pool: VerifierPool) -> None:
    asked = problem(("language:response_language", {"language": "en"}))
    assert len(set(outcomes(pool, asked, ["hotel taxi bus"] * 30))) == 1
    assert outcomes(pool, asked, ["This is an English sentence with many words."]) == ["correct"]


def test_what_the_installation_cannot_judge_is_said(pool: VerifierPool) -> None:
    fine = problem(("punctuation:no_comma", {}), prompt_id="fine")
    unknown = problem(("detectable_format:none_such", {}), prompt_id="unknown")
    wrong = problem(("punctuation:no_comma", {"commas": 3}), prompt_id="wrong")
    defects = {asked.problem_id: defect for asked, defect in pool.gold_defects([fine, unknown, wrong])}
    assert defects.keys() == {"unknown", "wrong"}
    assert defects["unknown"] == "unknown instruction detectable_format:none_such"
    assert "arguments of its instructions are wrong" in defects["wrong"]
    for name in ifeval.NEEDS_PUNKT:
        given = {"num_sentences": 1, "relation": "at least"} if "sentences" in name else {}
        given = given or {"capital_frequency": 1, "capital_relation": "at least"}
        asked = problem((name, given))
        (defect,) = [text for _, text in pool.gold_defects([asked])] or [None]
        if defect is None:
            assert outcomes(pool, asked, ["One SENTENCE. And two."]) == ["correct"]
        else:
            assert defect == f"{name} needs nltk's data (python -m nltk.downloader punkt_tab)"
