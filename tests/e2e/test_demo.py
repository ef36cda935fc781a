"""``make demo`` from beginning to end, with a base model that learned next to nothing and one short step.

Everything is real: reasoning-gym, supervised training, torchrun, rollouts by the embedded engine, the export.
Not exercised: the rise of the accuracy, which takes minutes (a run of ``make demo`` shows it); the recipe's own
layout and engine, with which ``test_train.py`` trains.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from nemo_ibtpo.config.schema import RunConfig
from nemo_ibtpo.experiments.base_models.imitation import load_settings, make_base_model
from nemo_ibtpo.experiments.demo import driver
from nemo_ibtpo.inspection.archive import TreeArchive
from nemo_ibtpo.reporting.progress import RunConsole

SMALL = [
    "actor.tensor_model_parallel_size=1",
    "actor.pipeline_model_parallel_size=1",
    "actor.sequence_parallel=false",
    "rollout=transformers",
    "trainer.max_steps=1",
    "trainer.num_prompts_per_step=4",
    "trainer.num_prompts_per_update=4",
    "trainer.val_samples_per_prompt=1",
    "data.train.size=20",
    "data.validation.size=8",
    "sampler.initial_rollouts=2",
    "sampler.rounds=2",
    "sampler.max_sequences_per_tree=2",
    "rollout.max_new_tokens=40",
]


def make_model(directory: Path, config: RunConfig, console: RunConsole) -> bool:
    # Heads of 32 channels, the smallest that vLLM serves on a CPU.
    settings = replace(load_settings(), intermediate_size=64, num_solutions=240, num_threads=1)
    return make_base_model(directory, settings, config.data, console)


def test_the_demo(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "with blanks, commas = and more"
    output.mkdir()
    for name in ("metrics.jsonl", "summary.json"):
        (output / name).write_text("of an earlier run\n")
    words = [f"output_dir='{output}'", f"model.path='{output}/base_model'", *SMALL]
    driver.run("tiny", make_model, words)

    summary = json.loads((output / "summary.json").read_text())
    assert summary["steps"] == 1
    assert summary["trajectories_per_prompt"] == 3
    assert summary["base_accuracy"] * 8 in range(9)  # 8 problems with one sample each
    assert 0 < summary["unique_tokens_per_prompt"] <= summary["duplicated_tokens_per_prompt"]
    assert [json.loads(line)["step"] for line in (output / "metrics.jsonl").open()] == [0, 1]
    assert (output / "curves.png").read_bytes().startswith(b"\x89PNG")
    tokenizer = AutoTokenizer.from_pretrained(output / "hf", local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(output / "hf", local_files_only=True)
    assert model.config.vocab_size == len(tokenizer)
    assert TreeArchive(output).steps() == [1]
    told = capfd.readouterr().out
    assert told.endswith(f"report with curves and trees, to open in a browser: {output / 'report.html'}\n")
    assert (output / "report.html").read_text().startswith("<!doctype html>")
    for line in ("[1/3] model to start from", "[2/3] 1 steps of IB-TPO on 1 ranks: TP1 x PP1", "[3/3] results"):
        assert line in told


def test_without_vllm_the_demo_says_so_and_goes_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    console = RunConsole(0)
    monkeypatch.setattr(driver, "find_spec", lambda name: None)
    assert driver._engine_overrides([], console) == ["rollout=transformers"]
    assert "vLLM is not installed here: the embedded engine samples" in capsys.readouterr().out
    assert driver._engine_overrides(["rollout=vllm"], console) == []  # asked for: the run refuses with one line
    monkeypatch.setattr(driver, "find_spec", lambda name: object())
    assert driver._engine_overrides([], console) == []


def test_a_directory_of_somebody_else_ends_the_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "base_model").mkdir()
    assert driver.main(["--output-dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"demo: error: {tmp_path / 'base_model'} was not made by the demo")


def test_an_impossible_option_is_refused_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert driver.main(["--output-dir", str(tmp_path), "--steps", "0"]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("demo: error: trainer.max_steps=0")
    assert told.err.count("\n") == 1
    assert told.out == ""
