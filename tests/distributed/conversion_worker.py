"""Ranks of test_conversion.py: converted checkpoints in Megatron's hands, and Megatron's checkpoints converted."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from actor_worker import likelihood, make_batches
from conversion_models import convert_back, convert_to, weights_of, write_toy_model
from gradient_worker import OPTIMIZER
from layouts import enter
from parity_worker import Layout, actor_config

from nemo_ibtpo.checkpoints import MEGATRON, MODEL
from nemo_ibtpo.conversion.verify import _Zeros
from nemo_ibtpo.megatron.actor import MegatronActor
from nemo_ibtpo.megatron.architecture import load_architecture
from nemo_ibtpo.megatron.checkpoint import tensor_names
from nemo_ibtpo.megatron.safetensors_io import copy_companions, write_model

CASES: dict[str, tuple[str, Layout, torch.dtype]] = {
    "llama-dp4": ("llama", (1, 1, False, None), torch.float32),
    "qwen3_moe-ep4": ("qwen3_moe", (1, 1, False, None, 4), torch.float32),
    "qwen3-tp2-pp2": ("qwen3", (2, 2, True, None), torch.float32),
    "qwen3-tp2-pp2-bf16": ("qwen3", (2, 2, True, None), torch.bfloat16),
    "qwen2-tp2-pp2-vpp2": ("qwen2", (2, 2, False, 2), torch.float32),
    "qwen3_moe-tp2-pp2-ep2": ("qwen3_moe", (2, 2, True, None, 2), torch.float32),
}


def check(root: Path, family: str, layout: Layout, dtype: torch.dtype) -> dict[str, Any]:
    rank = dist.get_rank()
    if rank == 0:
        root.mkdir()
        write_toy_model(root / "hf", family, dtype=dtype)
        convert_to(root / "hf", root / "converted")
    dist.barrier()
    config = actor_config(*layout)
    architecture = load_architecture(root / "hf")
    actor = MegatronActor(
        architecture,
        _Zeros(architecture),
        actor=config,
        optimizer=OPTIMIZER,
        total_updates=10,
        dtype=dtype,
        temperature=1.0,
        keep_reference=False,
        context=enter(config),
    )
    actor.load_weights(root / "converted" / MEGATRON, round_to=dtype)
    expected = weights_of(root / "hf")
    loaded = dict(actor.named_weights())
    arrived = loaded.keys() == expected.keys() and all(torch.equal(loaded[name], expected[name]) for name in expected)

    batches = make_batches()
    for _ in range(2):
        actor.train_step([*batches, batches[0]], likelihood, 100)
    actor.save(root / "trained" / MEGATRON)
    write_model(root / "export", actor.named_weights(), like=root / "hf", write=rank == 0)
    result: dict[str, Any] = {"arrived": arrived}
    if rank == 0:
        (root / "trained" / MODEL).mkdir()
        copy_companions(root / "hf", root / "trained" / MODEL)
        convert_back(root / "trained", root / "back")
        exported, converted = weights_of(root / "export"), weights_of(root / "back")
        result["moved"] = any(not torch.equal(exported[name], expected[name]) for name in exported)
        result["different"] = [
            name for name in exported if name not in converted or not torch.equal(exported[name], converted[name])
        ]
        result["same_files"] = sorted(p.name for p in (root / "export").iterdir()) == sorted(
            p.name for p in (root / "back").iterdir()
        )
        # Padding of the vocabulary apart, Megatron and the converter write the same tensors.
        theirs = {name: size for name, size in tensor_names(root / "trained" / MEGATRON).items() if _is_weight(name)}
        ours = tensor_names(root / "converted" / MEGATRON)
        result["names_differ"] = sorted(theirs.keys() ^ ours.keys())
        result["shapes_differ"] = [n for n in ours if theirs.get(n, ())[1:] != ours[n][1:]]
        shutil.rmtree(root)
    everyone: list[bool] = [False] * dist.get_world_size()
    dist.all_gather_object(everyone, arrived)
    return result | {"arrived": all(everyone)}


def _is_weight(name: str) -> bool:
    return not name.startswith("optimizer.")


def main() -> None:
    output = Path(sys.argv[1])
    enter(actor_config(1, 1, False, None))  # starts torch.distributed
    results = {name: check(output.parent / name, *case) for name, case in CASES.items()}
    if dist.get_rank() == 0:
        output.write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
