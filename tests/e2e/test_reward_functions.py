"""A reward written in a file of ten lines trains, samples and evaluates; so do files of verl and slime.

Why it matters: it is the first thing that people bring.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_job import write_tiny_job

from nemo_ibtpo.cli import main
from nemo_ibtpo.evaluation.result import EvaluationResult
from nemo_ibtpo.reporting.metrics import read_metrics

REWARD = f"{Path(__file__).parents[2]}/examples/reward.py:reward"
WORDS = [f"reward.function={REWARD}", "trainer.max_steps=1", "trainer.val_period=0", "probe.num_prompts=0"]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_tiny_job(tmp_path / "job")


def rows(count: int, start: int, **columns: Any) -> list[dict[str, Any]]:
    return [{"question": f"{n} 0 {n}", "answer": str(1 + n % 2), "level": n} for n in range(start, start + count)]


def write_rows(recipe: Path) -> None:
    for name, count, start in (("train", 12, 0), ("validation", 4, 40)):
        text = "".join(json.dumps(row) + "\n" for row in rows(count, start))
        (recipe.parent / f"{name}.jsonl").write_text(text)


def test_a_function_trains_and_evaluates(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(recipe)
    output = tmp_path / "out"
    assert main(["train", f"recipe={recipe}", f"output_dir={output}", *WORDS]) == 0, capsys.readouterr().err
    step = read_metrics(output / "metrics.jsonl")[-1]
    assert 0 < step["reward/boxed"] < 1, "a part that the function measures is a metric"
    assert step["train/avg_rate"] == pytest.approx(0.5 * step["reward/boxed"], abs=0.5)
    result = EvaluationResult.from_jsonl(output / "validation" / "step_1.jsonl")
    assert {sample.verdict for sample in result.samples} == {"scored"}
    words = [
        f"model.path={recipe.parent}/model",
        f"output_dir={tmp_path}/evals",
        "benchmark=jsonl",
        f"benchmark.data.path={recipe.parent}/validation.jsonl",
        "benchmark.template=plain",
        "benchmark.prompt_format='{question}'",
        "benchmark.max_prompt_tokens=8",
        "benchmark.samples_per_problem=2",
        "model.dtype=fp32",
        "device=cpu",
        "rollout=transformers",
        "rollout.max_new_tokens=24",
        "rollout.max_batch_size=8",
        f"reward.function={REWARD}",
    ]
    assert main(["eval", *words]) == 0, capsys.readouterr().err
    evaluated = EvaluationResult.from_jsonl(tmp_path / "evals" / "jsonl" / "samples.jsonl")
    assert {tuple(sample.parts) for sample in evaluated.samples} == {("boxed", "level")}
    assert evaluated.settings["reward"]["function"] == REWARD


def test_a_missing_function_is_refused_by_a_dry_run(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", f"recipe={recipe}", "reward.function=none.py:reward", "--dry-run"]) == 2
    assert "reward.function=none.py:reward: there is no file none.py" in capsys.readouterr().err


CHAT = "{% for m in messages %}{{ m.content }} {% endfor %}{% if add_generation_prompt %}0{% endif %}"


@pytest.mark.parametrize("name", ["verl", "slime"])
def test_files_of_other_trainers_train(
    recipe: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = recipe.parent / "model" / "tokenizer_config.json"
    tokenizer.write_text(json.dumps(json.loads(tokenizer.read_text()) | {"chat_template": CHAT}))
    paths = {}
    for split, count, start in (("train", 12, 0), ("validation", 4, 40)):
        prompts = [([{"role": "user", "content": row["question"]}], row["answer"]) for row in rows(count, start)]
        if name == "verl":
            found = [{"prompt": p, "reward_model": {"style": "rule", "ground_truth": a}} for p, a in prompts]
            paths[split] = tmp_path / f"{split}.parquet"
            pq.write_table(pa.Table.from_pylist(found), paths[split])
        else:
            paths[split] = tmp_path / f"{split}.jsonl"
            paths[split].write_text("".join(json.dumps({"prompt": p, "label": a}) + "\n" for p, a in prompts))
    text = recipe.read_text().replace("/data: jsonl", f"/data: {name}").replace("template: plain", "template: chat")
    for split, path in paths.items():
        text = text.replace(f"{recipe.parent}/{split}.jsonl", str(path))
    recipe.write_text(text)
    words = [f"recipe={recipe}", f"output_dir={tmp_path}/out", *WORDS[1:]]
    assert main(["data", "check", *words]) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert "training data: " in shown and "12 problems from 12 rows" in shown and "gold answer: '1'" in shown
    assert main(["train", *words]) == 0, capsys.readouterr().err
    assert read_metrics(tmp_path / "out" / "metrics.jsonl")[-1]["reward/verified"] > 0
