"""``nemo-ibtpo eval`` as a user starts it, on a model directory with random weights: killed, continued, compared.

Why it matters: parts that are right alone can still be joined into an evaluation that loses samples or compares what
is not comparable. That lm-eval takes an exported directory as it is is tested here too, on a task without a network.
Not exercised: published models and data sets, and vLLM as the engine.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from byte_tokenizer import byte_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig

from nemo_ibtpo import cli
from nemo_ibtpo.megatron.safetensors_io import write_model

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as a run exports it."""
    source = tmp_path_factory.mktemp("model") / "source"
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            eos_token_id=0,
            bos_token_id=None,
            tie_word_embeddings=False,
        )
    )
    network.save_pretrained(source)
    tokenizer.save_pretrained(source)
    exported = source.parent / "hf"
    write_model(exported, iter(network.state_dict().items()), like=source, write=True)
    return exported


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "problems.jsonl"
    path.write_text("".join(json.dumps({"question": f"{i} + {i}?", "answer": str(2 * i)}) + "\n" for i in range(12)))
    return path


def words(model: Path, problems: Path, output: Path, *more: str) -> list[str]:
    return [
        "eval",
        f"model.path={model}",
        "model.dtype=fp32",
        f"output_dir={output}",
        "device=cpu",
        "rollout=transformers",
        "rollout.max_batch_size=4",
        "benchmark=jsonl",
        f"benchmark.data.path={problems}",
        "benchmark.max_prompt_tokens=200",
        "rollout.max_new_tokens=40",
        "reward.num_workers=1",
        *more,
    ]


def test_a_killed_evaluation_goes_on_and_ends_as_an_undisturbed_one(
    model: Path, problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words(model, problems, tmp_path / "whole")) == 0
    out = capsys.readouterr().out
    assert "evaluation on 'jsonl'" in out and "avg@4" in out and "12 problems" in out
    killed = tmp_path / "killed"
    journal = killed / "jsonl" / "journal.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "nemo_ibtpo.cli", *words(model, problems, killed)],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not journal.exists() or journal.read_bytes().count(b"\n") < 6:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert cli.main(words(model, problems, killed)) == 0
    assert "jsonl: going on after " in capsys.readouterr().out
    ours, theirs = ((tmp_path / name / "jsonl" / "samples.jsonl").read_text() for name in ("killed", "whole"))
    assert ours == theirs and ours.count("\n") == 49
    header = json.loads(ours.splitlines()[0])["settings"]
    assert header["seed"] == 1 and header["temperature"] == 0.7 and len(header["model_digest"]) == 16
    assert sorted(path.name for path in (killed / "jsonl").iterdir()) == [
        "samples.jsonl",
        "summary.json",
        "summary.md",
    ]

    assert cli.main(words(model, problems, killed)) == 0
    assert "already evaluated" in capsys.readouterr().out
    assert cli.main(words(model, problems, killed, "rollout.temperature=1.0")) == 2
    assert "finished evaluation with other settings (temperature: 0.7, here 1.0)" in capsys.readouterr().err
    assert cli.main(["eval", "compare", str(killed), str(tmp_path / "whole"), "--write", str(tmp_path / "both")]) == 0
    assert "difference [95 % interval]" in capsys.readouterr().out
    assert json.loads((tmp_path / "both.json").read_text())["rows"][0]["comparison"]["p_value"] == 1.0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["benchmark=jsonl"], "eval takes one benchmark=<name>[,<name> ...], not 2"),
        (["rollout.max_new_tokens=4000"], "tokens, but the model has 512 positions"),
        (["benchmark.data.verifier=ifeval"], "with benchmark.kind=open: use math, exact or reasoning_gym"),
        (["benchmark.kind=choice"], "with benchmark.kind=choice: use choice"),
        (["benchmark.samples_per_problem=0"], "on the command line: expected a number above 0 (samples of each"),
        (["rollout.tensor_parallel_size=2"], "the transformers engine runs on one device"),
        (["benchmark.name=../up"], "benchmark.name=../up: it names a directory"),
        (["--write", "x"], "--write goes with eval compare"),
        (["model.pth=x"], "unknown key 'model.pth' on the command line (did you mean 'model.path'?)"),
    ],
)
def test_mistakes(
    more: list[str], message: str, model: Path, problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words(model, problems, tmp_path / "out", *more)) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_checkpoints_of_a_run_make_a_curve(
    model: Path, problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (2, 10):
        shutil.copytree(model, tmp_path / f"hf_step_{step}")
    curve = words(tmp_path / "hf_step_*", problems, tmp_path / "out", "benchmark.samples_per_problem=1")
    assert cli.main(curve) == 0
    assert "jsonl avg@1" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "curve.json").read_text())
    assert list(found) == ["2", "10"]
    for step, own in found.items():
        summary = json.loads((tmp_path / "out" / f"step_{step}" / "jsonl" / "summary.json").read_text())
        assert own["jsonl"]["value"] == summary["figures"][0]["value"]
    assert (tmp_path / "out" / "curve.png").read_bytes().startswith(b"\x89PNG")
    for pattern, message in (
        ("nothing_*", "no directory has such a name"),
        ("hf*p*", "hf_step_last does not end with"),
    ):
        (tmp_path / "hf_step_last").mkdir(exist_ok=True)
        assert cli.main(words(tmp_path / pattern, problems, tmp_path / "out")) == 2
        assert message in capsys.readouterr().err


def test_a_megatron_checkpoint_answers_as_the_model_it_was_made_of(
    model: Path, problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tmp_path / "checkpoint"
    assert cli.main(["convert", "hf-to-megatron", str(model), str(checkpoint)]) == 0
    assert cli.main(words(checkpoint, problems, tmp_path / "refused", "--dry-run")) == 2
    assert "which a dry run does not convert" in capsys.readouterr().err
    for name, source in (("original", model), ("converted", checkpoint)):
        assert cli.main(words(source, problems, tmp_path / name, "benchmark.samples_per_problem=1")) == 0
    samples = [
        (tmp_path / name / "jsonl" / "samples.jsonl").read_text().splitlines()[1:]
        for name in ("original", "converted")
    ]
    assert samples[0] == samples[1] and len(samples[0]) == 12


def test_a_dry_run_reads_no_data(
    model: Path, problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nonsense").write_bytes(b"\xff{")
    assert cli.main(words(model, tmp_path / "nowhere", tmp_path / "out", "--dry-run")) == 2
    assert "nowhere does not exist" in capsys.readouterr().err
    assert cli.main(words(model, tmp_path / "nonsense", tmp_path / "out", "--dry-run")) == 0
    assert capsys.readouterr().out.endswith("dry run: nothing was started, no data was read\n")
    assert not (tmp_path / "out").exists()


def test_rows_left_out_of_a_benchmark_are_refused_unless_accepted(
    model: Path, problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "some.jsonl"
    path.write_text(problems.read_text() + '{"question": "no answer"}\n')
    assert cli.main(words(model, path, tmp_path / "out", "benchmark.allow_left_out=false")) == 2
    err = capsys.readouterr().err
    assert "of 13 rows some cannot be used: 1 x no column 'answer'" in err and "allow_left_out=true" in err


TASK = """\
task: offline_sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}} "
doc_to_choice: ["0", "2", "4"]
doc_to_target: "{{{{['0', '2', '4'].index(answer)}}}}"
metric_list: [{{metric: acc}}]
"""


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval (extra `eval`) is not installed")
def test_lm_eval_takes_an_exported_directory_as_it_is(model: Path, problems: Path, tmp_path: Path) -> None:
    data = tmp_path / "sums.jsonl"
    data.write_text("".join(problems.read_text().splitlines(keepends=True)[:3]))
    (tmp_path / "sums.yaml").write_text(TASK.format(data=data))
    command = ["-m", "lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={model},dtype=float32"]
    command += ["--device", "cpu", "--tasks", "offline_sums", "--include_path", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, *command, "--output_path", str(tmp_path / "out")],
        env=ENVIRONMENT | {"HF_DATASETS_CACHE": str(tmp_path / "cache"), "HF_DATASETS_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (results,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(results.read_text())
    assert found["n-samples"]["offline_sums"]["effective"] == 3
