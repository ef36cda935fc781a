"""The main job, ``nemo-ibtpo train recipe=tiny`` on four ranks at TP2 x PP2.

Why it matters: every part is tested alone; here they meet. A base model of a few seconds' training is good enough to
have groups of mixed rewards. Looks at what a run leaves: metrics, validation samples, and a Hugging Face directory
that transformers loads and whose weights have moved. Not exercised: that accuracy rises, which takes minutes and is
what ``make demo`` shows.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from distributed.launch import command_line, start_ranks, try_ranks
from easy_sums import EASY_SUMS
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from nemo_ibtpo.inspection.archive import TreeArchive
from nemo_ibtpo.reporting.metric_table import undocumented
from nemo_ibtpo.reporting.metrics import read_metrics

SMALL = [*EASY_SUMS, "trainer.num_prompts_per_step=8", "trainer.num_prompts_per_update=4", "data.validation.size=16"]

NAME = "model.safetensors"


def train(num_ranks: int, log: Path, *overrides: str) -> tuple[list[str], str]:
    return try_ranks(num_ranks, command_line("train", "recipe=tiny", *overrides), log)


# The embedded engine on every rank, or one vLLM replica for the four of them.
ENGINES = {"transformers": ["rollout=transformers", "rollout.num_replicas=null"], "vllm": ["rollout=vllm"]}


@pytest.fixture(scope="module", params=ENGINES)
def run(request: pytest.FixtureRequest, tiny_base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "vllm":
        pytest.importorskip("vllm", reason="vLLM is not installed")
    output = tmp_path_factory.mktemp("run") / "out"
    words = [
        f"model.path={tiny_base_model}",
        f"output_dir={output}",
        "trainer.max_steps=2",
        "trainer.export_period=1",
    ]
    failed, said = train(
        4, output.with_suffix(".log"), *SMALL, *words, *ENGINES[request.param], "trainer.val_period=1"
    )
    assert not failed, said[-6000:]
    assert said.count("step 2/2") == 1  # rank 0 alone speaks
    return output


def test_metrics_of_every_step(run: Path) -> None:
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert rows[0]["val/accuracy"] * 64 in range(65)  # 16 problems with 4 samples each
    for row in rows[1:]:
        assert row["train/trajectories_per_prompt"] == 12
        assert row["train/unique_tokens_per_prompt"] <= row["train/duplicated_tokens_per_prompt"]
        assert row["mismatch/token_mult_prob_error"] < 1.001  # engine and actor agree on every sampled token
        assert row["train/grad_norm"] > 0
        assert "non_finite" not in row
        assert 0 <= row["perf/prefix_hit_rate"] < 1  # vLLM re-uses whole blocks, longer than these prompts
        assert row["train/branches_per_tree"] <= 8
        assert undocumented(list(row)) == []
    # Two updates a step: in the second the policy has moved away from the one that sampled.
    assert any(row["train/policy_kl"] > 0 for row in rows[1:])


def test_trees_are_kept(run: Path) -> None:
    rows, archive = read_metrics(run / "metrics.jsonl"), TreeArchive(run)
    assert archive.steps() == [1, 2]
    for step in (1, 2):
        trees = archive.read(step).trees
        assert len(trees) == 8  # all of them
        assert np.mean([tree.mean_reward for tree in trees]) == pytest.approx(rows[step]["train/avg_rate"])
        assert np.mean([tree.is_mixed for tree in trees]) == pytest.approx(rows[step]["train/eff_rate"])
        assert all(tree.trajectories == 12 for tree in trees)
        assert all(tree.question in tree.nodes[0].text for tree in trees)


def test_validation_samples_are_kept(run: Path) -> None:
    for step in (0, 1, 2):
        header, *samples = (run / "validation" / f"step_{step}.jsonl").read_text().splitlines()
        assert len(samples) == 16 * json.loads(header)["samples_per_problem"]


def test_trained_model_is_a_hugging_face_directory(run: Path, tiny_base_model: Path) -> None:
    before = AutoModelForCausalLM.from_pretrained(tiny_base_model).state_dict()
    first = AutoModelForCausalLM.from_pretrained(run / "hf_step_1").state_dict()
    last = AutoModelForCausalLM.from_pretrained(run / "hf").state_dict()
    assert before.keys() == last.keys()
    for name, weight in before.items():
        assert not torch.equal(weight, last[name]), name
        assert torch.allclose(weight, last[name], atol=0.01), name
    assert any(not torch.equal(first[name], last[name]) for name in last)
    tokenizer = AutoTokenizer.from_pretrained(run / "hf")
    assert tokenizer("1 + 2").input_ids == AutoTokenizer.from_pretrained(tiny_base_model)("1 + 2").input_ids


def test_the_last_checkpoint_converts_to_the_exported_model(run: Path, tmp_path: Path) -> None:
    words = ["convert", "megatron-to-hf", str(run / "checkpoints" / "latest"), str(tmp_path / "hf"), "--verify"]
    assert "verified: logits" in start_ranks(1, command_line(*words), tmp_path / "log")
    converted, exported = load_file(tmp_path / "hf" / NAME), load_file(run / "hf" / NAME)
    assert converted.keys() == exported.keys()
    assert all(torch.equal(converted[name], exported[name]) for name in exported)


def test_grpo_is_the_same_program_on_trees_that_share_nothing(tiny_base_model: Path, tmp_path: Path) -> None:
    words = [f"model.path={tiny_base_model}", f"output_dir={tmp_path}", "trainer.max_steps=1"]
    layout = ["actor.pipeline_model_parallel_size=1"]  # TP2 on two ranks
    failed, said = train(
        2,
        tmp_path / "log",
        *SMALL,
        *words,
        *layout,
        "rollout=transformers",
        "sampler=independent",
        "method=grpo",
        "loss.kl_coef=0.0",
    )
    assert not failed, said[-6000:]
    row = read_metrics(tmp_path / "metrics.jsonl")[1]
    assert row["train/trajectories_per_prompt"] == 12
    assert "train/reference_kl" not in row


def test_diverging_run_ends_with_one_line_on_all_ranks(tiny_base_model: Path, tmp_path: Path) -> None:
    words = [
        f"model.path={tiny_base_model}",
        f"output_dir={tmp_path}",
        "optimizer.lr=1e30",
        "optimizer.clip_grad=0.0",
    ]
    more = ["rollout=transformers", "actor.pipeline_model_parallel_size=1"]
    failed, said = train(2, tmp_path / "log", *SMALL, *words, *more)
    assert failed
    errors = [line for line in said.splitlines() if line.startswith("nemo-ibtpo: error:")]
    assert len(errors) == 1, said[-3000:]
    assert "finite" in errors[0]
    assert "optimizer.lr" in errors[0]
