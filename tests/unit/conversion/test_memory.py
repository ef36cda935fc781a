"""A conversion holds one parameter, not the model.

Why it matters: a 70B model has 140 GB in bf16; who converts it on a login node must not need them. A model of 100 MB
in shards of 10 MB is converted in a process of its own, which reports by how much its memory grew at most.
Not exercised: models in one file.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conversion_models import write_toy_model
from transformers import Qwen3Config

PROGRAM = """\
import json, os, resource, sys
import psutil
from nemo_ibtpo.conversion.convert import hf_to_megatron, megatron_to_hf
from nemo_ibtpo.reporting.progress import RunConsole
from pathlib import Path
source, output, direction = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
warm_up = output.with_name(f"warm-up-{direction}")  # loads what is loaded when it is first used
options = {"provider": "own", "dtype": None, "force": True, "verify": False, "console": RunConsole(1)}
if direction == "megatron-to-hf":
    convert, options["max_shard_bytes"] = megatron_to_hf, 10_000_000
else:
    convert = hf_to_megatron
convert(Path(sys.argv[4]), warm_up, **options)
before = psutil.Process().memory_info().rss
Path("/proc/self/clear_refs").write_text("5")  # resets the peak
convert(source, output, **options)
peak = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"growth": peak - before}))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of a process is read from /proc")
def test_memory_stays_far_below_the_model(tmp_path: Path) -> None:
    config = Qwen3Config(
        vocab_size=1000,
        hidden_size=384,
        intermediate_size=1152,
        num_hidden_layers=14,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=64,
    )
    hf = write_toy_model(tmp_path / "hf", config=config, shard="10MB")
    write_toy_model(tmp_path / "small")
    size = sum(file.stat().st_size for file in hf.glob("*.safetensors"))
    assert size > 90e6
    small = tmp_path / "small"
    for direction, source, output in (
        ("hf-to-megatron", hf, tmp_path / "megatron"),
        ("megatron-to-hf", tmp_path / "megatron", tmp_path / "back"),
    ):
        words = [str(source), str(output), direction, str(small)]
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        growth = json.loads(done.stdout)["growth"]
        print(f"{direction}: {growth / 1e6:.0f} MB more for a model of {size / 1e6:.0f} MB")
        assert growth < 0.4 * size
        small = tmp_path / "warm-up-hf-to-megatron"
