"""An evaluation by several replicas gives the samples of a single process, also when it was stopped in between.

The embedded engine is deterministic, so that samples are compared one by one. Not exercised: GPUs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tiny_job import write_tiny_job

from nemo_ibtpo.cli import main


def evaluate(job: Path, output: Path, ranks: int, *more: str) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
    words = [
        f"model.path={job}/model",
        f"output_dir={output}",
        "benchmark=jsonl",
        f"benchmark.data.path={job}/train.jsonl",
        "benchmark.data.verifier=exact",
        "benchmark.template=plain",
        "benchmark.prompt_format='{question}'",
        "benchmark.max_prompt_tokens=8",
        "benchmark.samples_per_problem=3",
        "model.dtype=fp32",
        "device=cpu",
        "rollout=transformers",
        "rollout.max_new_tokens=24",
        "rollout.max_batch_size=8",
        *more,
    ]
    return subprocess.run(
        [sys.executable, *(launcher if ranks > 1 else ["-m"]), "nemo_ibtpo.cli", "eval", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_two_replicas_give_the_samples_of_one(tmp_path: Path) -> None:
    job = tmp_path / "job"
    write_tiny_job(job)
    one, two = tmp_path / "one", tmp_path / "two"
    done = evaluate(job, one, 1)
    assert done.returncode == 0, done.stderr[-3000:]
    samples = (one / "jsonl" / "samples.jsonl").read_text()
    _, *rows = map(json.loads, samples.splitlines())
    assert len(rows) == 36 and len({tuple(row["tokens"]) for row in rows}) > 10

    # Left behind by a run of three ranks that was killed: rank 0 takes it over, and samples nothing twice.
    settings = json.loads(samples.splitlines()[0])["settings"]
    journal = two / "jsonl" / "journal_2.jsonl"
    journal.parent.mkdir(parents=True)
    own = {"samples_per_problem", "max_new_tokens", "seed"}
    assert own <= set(settings)
    journal.write_text(json.dumps({"format": "nemo_ibtpo.evaluation_journal/1", "settings": settings}) + "\n")

    done = evaluate(job, two, 2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("evaluation on 'jsonl'") == 1, "rank 0 alone speaks"
    assert (two / "jsonl" / "samples.jsonl").read_text() == samples
    assert sorted(path.name for path in (two / "jsonl").glob("journal*")) == []

    convert = ["convert", "hf-to-megatron", str(job / "model"), str(tmp_path / "checkpoint")]
    assert main(convert) == 0
    done = evaluate(job, tmp_path / "four", 2, f"model.path={tmp_path}/checkpoint")
    assert done.returncode == 0, done.stderr[-3000:]
    converted = (tmp_path / "four" / "jsonl" / "samples.jsonl").read_text()
    assert converted.splitlines()[1:] == samples.splitlines()[1:]

    done = evaluate(job, tmp_path / "three", 2, "rollout.num_replicas=3")
    assert "2 ranks do not make 3 replicas" in done.stderr
