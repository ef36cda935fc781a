"""Refit: from the actor's Megatron shards to vLLM ready to sample with them, against copying as many bytes.

What is timed is ``engine.update_weights(actor.named_weights())`` on all ranks: gathering every weight over tensor-
and pipeline-parallel ranks, handing it to vLLM's process, vLLM's loading and packing, the reset of its prefix cache.
The other side is one ``copy_`` of the same number of bytes between tensors of rank 0. No rank does anything else.

    python benchmarks/refit.py --tensor 2 --pipeline 2

The last line is JSON: ``memcpy_ratio`` (median over the repetitions), its spread, the seconds of both, and
``gather_s``, the part that is gathering the weights on all ranks.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from measure import describe, in_turn, ratio, report
from transformers import AutoModelForCausalLM, Qwen3Config
from workloads import defaults, rollout_config

from nemo_ibtpo.config.schema import ActorConfig
from nemo_ibtpo.demo.tokenizer import make_tokenizer
from nemo_ibtpo.megatron import parallel
from nemo_ibtpo.megatron.actor import MegatronActor
from nemo_ibtpo.megatron.architecture import load_architecture
from nemo_ibtpo.megatron.safetensors_io import SafetensorsDirectory
from nemo_ibtpo.rollout.elsewhere import EngineElsewhere
from nemo_ibtpo.rollout.engine import RolloutEngine, SamplingParams
from nemo_ibtpo.rollout.vllm_engine import VLLMEngine

MODELS = {
    "tiny": Qwen3Config(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        tie_word_embeddings=True,
    ),
    # 112 million parameters, 450 MB in float32.
    "112m": Qwen3Config(
        vocab_size=32000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=14,
        num_attention_heads=12,
        num_key_value_heads=4,
        head_dim=64,
        tie_word_embeddings=True,
    ),
}


def write_model(directory: Path, name: str) -> None:
    """A random model and a tokenizer that vLLM can load."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(MODELS[name]).save_pretrained(directory)
    make_tokenizer(["1 + 2"]).save_pretrained(directory)


def measure_refit(directory: Path, actor_config: ActorConfig, repetitions: int) -> None:
    """Time both sides; called on every rank."""
    context = parallel.initialize(actor_config, seed=0)
    actor = MegatronActor(
        load_architecture(directory),
        SafetensorsDirectory(directory),
        actor=actor_config,
        optimizer=None,
        total_updates=1,
        dtype=torch.float32,
        temperature=1.0,
        keep_reference=False,
        context=context,
    )
    engine: RolloutEngine = EngineElsewhere(SamplingParams())
    if dist.get_rank() == 0:
        engine = VLLMEngine(
            directory,
            rollout_config(kv_cache_gib=0.25),
            sampling=SamplingParams(),
            dtype=torch.float32,
            device=context.device,
            max_model_len=64,
            log_path=directory / "vllm.log",
        )
    size = sum(tensor.numel() * tensor.itemsize for _, tensor in actor.named_weights())
    source, target = torch.ones(size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)

    def refit() -> None:
        dist.barrier()
        engine.update_weights(actor.named_weights())

    def gather() -> None:
        dist.barrier()
        for _ in actor.named_weights():
            pass

    def memcpy() -> None:
        dist.barrier()
        if dist.get_rank() == 0:
            target.copy_(source)

    refits, gathers, copies = in_turn([refit, gather, memcpy], repetitions, context.device)
    engine.close()
    if dist.get_rank() == 0:
        print(f"{size / 1e6:.0f} MB: refit {refits}, of which gathering {gathers}; memcpy {copies}")
        ratios = refits.wall / copies.wall
        report(
            memcpy_ratio=ratio(refits.wall, copies.wall),
            memcpy_ratio_low=float(ratios.min()),
            memcpy_ratio_high=float(ratios.max()),
            refit_s=float(sorted(refits.wall)[repetitions // 2]),
            gather_s=float(sorted(gathers.wall)[repetitions // 2]),
            memcpy_s=float(sorted(copies.wall)[repetitions // 2]),
            bytes=size,
            ranks=dist.get_world_size(),
            device=describe(context.device),
        )
    parallel.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tensor", type=int, default=1, help="tensor-parallel ranks")
    parser.add_argument("--pipeline", type=int, default=1, help="pipeline stages")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="seconds on any machine; its figures mean nothing")
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)  # set for the ranks
    options = parser.parse_args()
    if options.model is not None:
        actor = actor_config(options.tensor, options.pipeline)
        measure_refit(options.model, actor, options.repetitions)
        return
    with tempfile.TemporaryDirectory() as directory:
        write_model(Path(directory), "tiny" if options.tiny else "112m")
        ranks = options.tensor * options.pipeline
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        command = [sys.executable, *launcher, *sys.argv, f"--model={directory}"]
        sys.exit(subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False).returncode)


def actor_config(tensor: int, pipeline: int) -> ActorConfig:
    """The defaults at this layout, on a CPU."""
    return replace(
        ActorConfig(**defaults("actor")),
        device="cpu",
        tensor_model_parallel_size=tensor,
        pipeline_model_parallel_size=pipeline,
    )


if __name__ == "__main__":
    main()
