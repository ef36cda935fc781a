"""What test_failed_start.py looks at: starts that fail, one after the other, in one process that lives on.

After each it lists the processes that are left of those that the run started.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from multiprocessing import forkserver, resource_tracker
from pathlib import Path

from safetensors.torch import load_file, save_file
from tiny_job import write_tiny_job
from toy_models import random_model

from nemo_ibtpo.cli import main
from nemo_ibtpo.megatron import parallel


def descendants(pid: int) -> list[int]:
    """Process ids of children and theirs; a zombie, which has ended, is none."""
    children = []
    for directory in Path("/proc").iterdir():
        if directory.name.isdecimal():
            with contextlib.suppress(OSError):  # it has just gone
                state, parent = (directory / "stat").read_text().rpartition(")")[2].split()[:2]
                if int(parent) == pid and state != "Z":
                    children.append(int(directory.name))
    return children + [other for child in children for other in descendants(child)]


def left_behind() -> list[str]:
    """Command lines of the processes that are left, but for multiprocessing's own two, which end with this one."""
    own = {forkserver._forkserver._forkserver_pid, resource_tracker._resource_tracker._pid}
    found = set(descendants(os.getpid())) - own
    return [(Path("/proc") / str(pid) / "cmdline").read_text().replace("\0", " ")[:200] for pid in sorted(found)]


def tell(root: Path, *, with_vllm: bool) -> dict[str, tuple[int, str, list[str]]]:
    """Exit status, output and processes left of each attempt."""
    recipe = write_tiny_job(root / "job")
    model = root / "job" / "model"
    random_model("qwen3", head_dim=32).save_pretrained(model)  # vLLM's CPU attention takes no smaller heads
    told: dict[str, tuple[int, str, list[str]]] = {}

    def attempt(name: str, *words: str) -> None:
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            status = main(["train", f"recipe={recipe}", f"output_dir={root / name}", *words])
        parallel.shutdown()
        told[name] = (status, text.getvalue(), left_behind())

    if with_vllm:
        vllm = ("rollout=vllm", "rollout.vllm.kv_cache_gib=0.05", "rollout.max_new_tokens=24")
        attempt("engine", *vllm, "rollout.vllm.start_timeout_s=0.5", "rollout.vllm.max_restarts=0")
        (root / "no_checkpoint").mkdir()
        (root / "no_checkpoint" / "manifest.json").write_text("{}")
        attempt("after_the_engine", *vllm, f"checkpoint.resume={root / 'no_checkpoint'}")
    weights = load_file(model / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    attempt("weights")
    return told


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    (directory / "told.json").write_text(json.dumps(tell(directory, with_vllm=sys.argv[2] == "vllm")))
