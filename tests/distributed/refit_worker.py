"""Ranks of test_refit.py: bytes that new weights cost on TP2 x PP2, counted on their way."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
from layouts import enter
from parity_worker import actor_config
from toy_models import hf_weights, random_model

from nemo_ibtpo.megatron.actor import MegatronActor
from nemo_ibtpo.megatron.architecture import architecture_from_config
from nemo_ibtpo.rollout.transport.host_writer import HostWriter

HOSTS = "aabb"
BUCKET_BYTES = 4096


def main() -> None:
    results = {}
    context = enter(actor_config(2, 2, True, None))
    for family, engine_ranks in (("llama", [0, 2]), ("qwen3", [1])):
        model = random_model(family)
        actor = MegatronActor(
            architecture_from_config(model.config),
            hf_weights(model),
            actor=actor_config(2, 2, True, None),
            optimizer=None,
            total_updates=1,
            dtype=torch.float32,
            temperature=1.0,
            keep_reference=False,
            context=context,
        )
        writer = HostWriter(actor, engine_ranks, HOSTS[dist.get_rank()], BUCKET_BYTES)
        for _ in writer.write(actor):
            pass
        everyone: list[dict[str, int]] = [{} for _ in HOSTS]
        dist.all_gather_object(everyone, asdict(writer.written))
        writer.close()
        results[family] = {"ranks": everyone, "least": writer.least_network_bytes, "bucket": BUCKET_BYTES}
    if dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
