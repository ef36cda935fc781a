"""Refit: from the actor's Megatron shards to vLLM ready to sample with them, against copying as many bytes.

What is timed is ``engine.update_weights(...)`` on all ranks, as training calls it: every rank's copy of its shards
into the shared memory, vLLM's loading and packing, which goes on meanwhile, the reset of its prefix cache. The other
side is one ``copy_`` of the same number of bytes, in memory that has been touched before, by one thread of rank 0;
every process of the refit has one thread too. No rank does anything else.

    python benchmarks/refit.py --tensor 2 --pipeline 2
    python benchmarks/refit.py --model runs/smollm2/base_model --pipeline 2

The last line is JSON: ``memcpy_ratio`` (median over the repetitions), its spread, and the seconds of both.
``write_s`` is the ranks' part alone, ``gathered_s`` a refit that gathers every weight on all ranks, as an embedded
engine needs it. ``cpu_ratio`` compares the CPU seconds of all processes with those of the copy, which other work on
the machine moves less. The first refit, in which the kernel makes the memory, is not timed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
from measure import describe, in_turn, ratio, report
from transformers import AutoModelForCausalLM, Qwen3Config
from workloads import defaults, rollout_config

from nemo_ibtpo.config.schema import ActorConfig
from nemo_ibtpo.experiments.base_models.tokenizer import make_tokenizer
from nemo_ibtpo.megatron import parallel
from nemo_ibtpo.megatron.actor import MegatronActor
from nemo_ibtpo.megatron.architecture import load_architecture
from nemo_ibtpo.megatron.safetensors_io import SafetensorsDirectory
from nemo_ibtpo.rollout.elsewhere import EngineElsewhere
from nemo_ibtpo.rollout.engine import RolloutEngine, SamplingParams
from nemo_ibtpo.rollout.transport.segment import segment_of_host, this_host
from nemo_ibtpo.rollout.vllm.engine import VLLMEngine

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


def measure_refit(directory: Path, log_path: Path, actor_config: ActorConfig, repetitions: int) -> None:
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
    segment = segment_of_host(directory, torch.float32, [0], this_host())
    assert segment is not None
    weights = actor.host_weights(segment.weights, this_host())
    engine: RolloutEngine = EngineElsewhere(SamplingParams())
    if dist.get_rank() == 0:
        engine = VLLMEngine(
            directory,
            rollout_config(kv_cache_gib=0.25),
            sampling=SamplingParams(),
            dtype=torch.float32,
            device=context.device,
            max_model_len=64,
            log_path=log_path,
            segment=segment,
        )
    size = sum(tensor.numel() * tensor.itemsize for _, tensor in actor.named_weights())
    source, target = torch.ones(size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)

    vllm_cpu_s: list[float] = []

    def refit() -> None:
        dist.barrier()
        before = cpu_seconds(engine)
        engine.update_weights(weights())
        vllm_cpu_s.append(cpu_seconds(engine) - before)
        dist.barrier()

    def write() -> None:
        dist.barrier()
        for _ in weights():
            pass
        dist.barrier()

    def gathered() -> None:
        dist.barrier()
        engine.update_weights(actor.named_weights())
        dist.barrier()

    def memcpy() -> None:
        dist.barrier()
        if dist.get_rank() == 0:
            target.copy_(source)

    refits, writes, gathers, copies = in_turn([refit, write, gathered, memcpy], repetitions, context.device)
    engine.close()
    everyone: list[float] = [0.0] * dist.get_world_size()
    dist.all_gather_object(everyone, float(refits.cpu.sum()))
    if dist.get_rank() == 0:
        print(f"{size / 1e6:.0f} MB: refit {refits}, writing {writes}, gathered {gathers}; memcpy {copies}")
        ratios = refits.wall / copies.wall
        report(
            memcpy_ratio=ratio(refits.wall, copies.wall),
            memcpy_ratio_low=float(ratios.min()),
            memcpy_ratio_high=float(ratios.max()),
            refit_s=float(sorted(refits.wall)[repetitions // 2]),
            write_s=float(sorted(writes.wall)[repetitions // 2]),
            gathered_s=float(sorted(gathers.wall)[repetitions // 2]),
            cpu_ratio=(sum(everyone) + sum(vllm_cpu_s[1:])) / float(copies.cpu.sum()),
            memcpy_s=float(sorted(copies.wall)[repetitions // 2]),
            bytes=size,
            ranks=dist.get_world_size(),
            device=describe(context.device),
        )
    parallel.shutdown()


def cpu_seconds(engine: RolloutEngine) -> float:
    """What the engine's process has computed for so far."""
    if not isinstance(engine, VLLMEngine):
        return 0.0
    times = psutil.Process(engine.pid).cpu_times()
    return float(times.user + times.system)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tensor", type=int, default=1, help="tensor-parallel ranks")
    parser.add_argument("--pipeline", type=int, default=1, help="pipeline stages")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="seconds on any machine; its figures mean nothing")
    parser.add_argument("--model", type=Path, help="a Hugging Face model instead of a random one of 112 M parameters")
    parser.add_argument("--vllm-log", type=Path, help=argparse.SUPPRESS)  # set for the ranks
    options = parser.parse_args()
    if options.vllm_log is not None:
        actor = actor_config(options.tensor, options.pipeline)
        measure_refit(options.model, options.vllm_log, actor, options.repetitions)
        return
    with tempfile.TemporaryDirectory() as scratch:
        arguments = [f"--vllm-log={scratch}/vllm.log"]
        if options.model is None:
            write_model(Path(scratch), "tiny" if options.tiny else "112m")
            arguments.append(f"--model={scratch}")
        ranks = options.tensor * options.pipeline
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        command = [sys.executable, *launcher, *sys.argv, *arguments]
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
