"""``nemo-ibtpo plan``: what it prints follows from the configuration, and what it suggests fits.

Why it matters: a suggestion that was not planned itself sends a user from one full queue to the next. Not exercised:
that a real GPU agrees; tests/distributed/test_memory.py and tests/distributed/test_activations.py hold the
figures behind it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from model_directories import HF_CONFIG, write_model_directory

from nemo_ibtpo import cli

RECIPE = """\
defaults: [config, {override /data: dapo_math}, {override /rollout: vllm}, _self_]
model: {path: models/Qwen3-8B-Base}
actor: {tensor_model_parallel_size: 2, sequence_parallel: true}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "mine-2n8g.yaml"
    path.write_text(RECIPE)
    return f"recipe={path}"


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert cli.main(["plan", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_sizes_come_from_the_card_and_gpus_from_the_name(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(capsys, recipe)
    assert plan["world_size"] == 16
    assert plan["parameters"] == 8_190_735_360  # as Hugging Face counts Qwen3-8B-Base
    assert "Qwen3-8B-Base.json" in plan["model_source"]


def test_a_config_json_goes_before_a_card(tmp_path: Path, recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_model_directory(tmp_path / "Qwen3-8B-Base", head_dim=8)
    (model / "model.safetensors").unlink()  # weights are not asked for
    plan = planned(capsys, recipe, f"model.path={model}")
    assert plan["model_source"] == str(model / "config.json")
    h, layers, vocab = HF_CONFIG["hidden_size"], HF_CONFIG["num_hidden_layers"], HF_CONFIG["vocab_size"]
    # q and o 32 x 32, k and v 16 x 32, norms of 32, 32, 8 and 8, three matrices of 48 x 32; two embeddings, one norm.
    assert plan["parameters"] == layers * (2 * 32 * h + 2 * 16 * h + 2 * h + 16 + 3 * 48 * h) + 2 * vocab * h + h


@pytest.mark.parametrize(
    ("changes", "matrices", "embeddings", "assumed"),
    [
        (
            {"architectures": ["NemotronForCausalLM"], "hidden_act": "relu2"},
            2,
            2,
            "MLPs without a gate, embeddings untied",
        ),
        (
            {"architectures": ["GemmaForCausalLM"], "model_type": "gemma", "hidden_act": "gelu"},
            3,
            1,
            "MLPs with a gate, embeddings tied",
        ),
    ],
    ids=["nemotron", "gemma"],
)
def test_a_model_of_megatron_bridge(
    tmp_path: Path,
    recipe: str,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    matrices: int,
    embeddings: int,
    assumed: str,
) -> None:
    model = write_model_directory(tmp_path / "model", **changes)
    words = (recipe, f"model.path={model}", "model.provider=bridge")
    plan = planned(capsys, *words)
    h, layers, vocab = HF_CONFIG["hidden_size"], HF_CONFIG["num_hidden_layers"], HF_CONFIG["vocab_size"]
    attention_and_norms = 2 * 32 * h + 2 * 16 * h + 2 * h
    assert plan["parameters"] == layers * (attention_and_norms + matrices * 48 * h) + embeddings * vocab * h + h
    assert assumed in plan["model_source"]
    # Two tensor-parallel ranks hold half of the matrices each, rows of the vocabulary included, and all norms.
    norms = layers * 2 * h + h
    gradients = plan["memory_bytes"]["train"]["gradients"]
    assert gradients == pytest.approx(4 * ((plan["parameters"] - norms) / 2 + norms), rel=0.05)
    file = model / "config.json"
    unclear = {"hidden_act": "gelu", "model_type": "starcoder2"}
    file.write_text(json.dumps(json.loads(file.read_text()) | unclear))
    assert cli.main(["plan", *words]) == 2
    assert "config.json (hidden_act gelu) does not say whether an MLP has a gate" in capsys.readouterr().err


def test_what_does_not_fit_comes_with_changes_that_do(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(capsys, recipe, "--gpu-memory-gb", "48")
    assert not plan["fits"]
    changes = [f"{key}={str(value).lower()}" for key, value in plan["suggestion"]["changes"].items()]
    size = str(plan["suggestion"]["world_size"])
    again = planned(capsys, recipe, *changes, "--gpu-memory-gb", "48", "--world-size", size)
    assert again["fits"]
    assert max(sum(parts.values()) for parts in again["memory_bytes"].values()) == plan["suggestion"]["most_bytes"]


def test_what_fits_gets_no_suggestion(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(capsys, recipe, "--gpu-memory-gb", "400", "rollout.vllm.gpu_memory_utilization=0.2")
    assert plan["fits"]
    assert plan["suggestion"] is None


@pytest.mark.parametrize(("context", "recompute"), [(1, "full"), (4, "selective")])
def test_the_longest_path_fits_and_one_block_more_does_not(
    recipe: str, capsys: pytest.CaptureFixture[str], context: int, recompute: str
) -> None:
    row = next(row for row in planned(capsys, recipe)["longest_paths"] if row["context"] == context)
    assert row["gpus"] == 16
    for tokens, fits in ((row["tokens"][recompute], True), (row["tokens"][recompute] + 128 * context, False)):
        words = [f"actor.recompute={recompute}", f"actor.context_parallel_size={context}"]
        memory = planned(capsys, recipe, *words, f"actor.max_tokens_per_microbatch={tokens}")["memory_bytes"]
        assert (max(sum(memory[name].values()) for name in ("log-probs", "train")) <= 79.1 * 2**30) == fits


def test_copy_of_what_is_saved(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    host = planned(capsys, recipe)["host_bytes"]
    # A bf16 weight, its float32 main weight and two moments, each written by one of the 16 ranks.
    assert host["copy of what is saved"] == pytest.approx(8_190_735_360 * 14 / 16, rel=0.01)
    assert "copy of what is saved" not in planned(capsys, recipe, "checkpoint.async_save=false")["host_bytes"]


def test_host_memory_of_a_node_is_that_of_its_ranks(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(capsys, recipe)  # two nodes of eight
    assert plan["host_bytes_of_a_node"] == pytest.approx(8 * sum(plan["host_bytes"].values()))


def test_text(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", recipe, "actor.recompute=full"]) == 0
    text = capsys.readouterr().out
    assert "GRPO at equal tokens, 8 independent responses a prompt: about" in text
    for part in (
        "batch plan of 'mine-2n8g'",
        "sampling",
        "log-probs",
        "train",
        "refit",
        "a step of",
        "responses of 32k: ",
        "mfu 0.35",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.path=models/unknown"], "neither models/unknown/config.json nor a card unknown.json"),
        (["--mfu", "1.5"], "--mfu 1.5 is out of range"),
        (["--response-tokens", "4096"], "at most 2048"),
        (["--world-size", "3"], "3 ranks cannot hold copies"),
    ],
)
def test_mistakes_are_told_in_one_line(
    recipe: str, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert cli.main(["plan", recipe, *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_planning_loads_no_heavy_library(recipe: str) -> None:
    program = (
        f"import sys; from nemo_ibtpo import cli; cli.main(['plan', {recipe!r}])\n"
        "print([name for name in ('torch', 'megatron', 'vllm', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
