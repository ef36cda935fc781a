"""Refit: from the actor's Megatron shards to vLLM ready to sample with them, against copying as many bytes.

What is timed is ``transport.publish(actor)`` on all ranks, as training calls it: every rank's copy of its parts into
the host's memory, vLLM's loading and packing, which goes on meanwhile, the reset of its prefix cache. The other side
is one ``copy_`` of the same number of bytes, in memory of the device that has been touched before, by one thread of
rank 0; on a CPU every process of the refit has one thread too. No rank does anything else.

    python benchmarks/refit.py --tensor 2 --pipeline 2
    python benchmarks/refit.py --tensor 2 --pipeline 2 --hosts 2
    python benchmarks/refit.py --model runs/smollm2/base_model --pipeline 2
    python benchmarks/refit.py --device cuda --dtype bf16

``--hosts 2`` counts the ranks as if the first half were on one machine and the second on another: parts go over the
network that the other half lacks. vLLM is on the first.

The last line is JSON: ``memcpy_ratio`` (median over the repetitions), its spread, and the seconds of both.
``write_s`` is the ranks' part alone. ``cpu_ratio`` compares the CPU seconds of all processes with those of the copy,
which other work on the machine moves less. Of one refit it counts bytes: ``network_bytes`` between hosts,
``least_network_bytes`` that hosts lack, ``copied_bytes`` into hosts' memory, ``most_staged_bytes`` that a rank held
at once on the way; ``peak_rss_bytes`` is the most memory of a rank's process, the shared part included, and
``peak_gpu_bytes`` of its GPU. The first refit, in which the kernel makes the memory, is not timed.
"""

from __future__ import annotations

import argparse
import os
import resource
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
from nemo_ibtpo.rollout.engine import SamplingParams
from nemo_ibtpo.rollout.transport.cuda_ipc import CudaIpcTransport
from nemo_ibtpo.rollout.transport.host_writer import HostWriter
from nemo_ibtpo.rollout.transport.shared_memory import SharedMemoryTransport
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


def measure_refit(directory: Path, log_path: Path, actor_config: ActorConfig, options: argparse.Namespace) -> None:
    """Time both sides; called on every rank."""
    context = parallel.initialize(actor_config, seed=0)
    dtype = torch.bfloat16 if options.dtype == "bf16" else torch.float32
    actor = MegatronActor(
        load_architecture(directory),
        SafetensorsDirectory(directory),
        actor=actor_config,
        optimizer=None,
        total_updates=1,
        dtype=dtype,
        temperature=1.0,
        keep_reference=False,
        context=context,
    )
    rank, world_size = dist.get_rank(), dist.get_world_size()
    writer = HostWriter(actor, [0], host=f"host {rank * options.hosts // world_size}")
    over_ipc = context.device.type == "cuda" and not writer.crosses_hosts
    transport = CudaIpcTransport(writer) if over_ipc else SharedMemoryTransport(writer)
    engine = None
    if rank == 0:
        engine = VLLMEngine(
            directory,
            rollout_config(kv_cache_gib=0.25),
            sampling=SamplingParams(),
            dtype=dtype,
            device=context.device,
            max_model_len=64,
            log_path=log_path,
        )
        transport.attach(engine)
    size = sum(tensor.nbytes for _, tensor in actor.named_weights())
    source = torch.ones(size, dtype=torch.uint8, device=context.device)
    target = torch.zeros_like(source)

    vllm_cpu_s: list[float] = []

    def refit() -> None:
        dist.barrier()
        before = cpu_seconds(engine)
        transport.publish(actor)
        vllm_cpu_s.append(cpu_seconds(engine) - before)
        dist.barrier()

    def write() -> None:
        dist.barrier()
        for _ in writer.write(actor):
            pass
        dist.barrier()

    def memcpy() -> None:
        dist.barrier()
        if rank == 0:
            target.copy_(source)

    before = replace(writer.written)
    refit()
    moved = {name: getattr(writer.written, name) - getattr(before, name) for name in ("sent", "copied")}
    moved["staged"] = writer.written.most_staged
    moved["rss"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    moved["gpu"] = torch.cuda.max_memory_allocated() if context.device.type == "cuda" else 0
    refits, writes, copies = in_turn([refit, write, memcpy], options.repetitions, context.device)
    if engine is not None:
        engine.close()
    transport.close()
    everyone: list[tuple[float, dict[str, int]]] = [(0.0, {})] * world_size
    dist.all_gather_object(everyone, (float(refits.cpu.sum()), moved))
    if rank == 0:
        print(f"{size / 1e6:.0f} MB: refit {refits}, writing {writes}; memcpy {copies}")
        ratios = refits.wall / copies.wall
        counts = [counted for _, counted in everyone]
        report(
            memcpy_ratio=ratio(refits.wall, copies.wall),
            memcpy_ratio_low=float(ratios.min()),
            memcpy_ratio_high=float(ratios.max()),
            refit_s=float(sorted(refits.wall)[options.repetitions // 2]),
            write_s=float(sorted(writes.wall)[options.repetitions // 2]),
            cpu_ratio=(sum(cpu for cpu, _ in everyone) + sum(vllm_cpu_s[2:])) / float(copies.cpu.sum()),
            memcpy_s=float(sorted(copies.wall)[options.repetitions // 2]),
            bytes=size,
            transport=type(transport).__name__,
            hosts=options.hosts,
            network_bytes=sum(counted["sent"] for counted in counts),
            least_network_bytes=writer.least_network_bytes,
            copied_bytes=sum(counted["copied"] for counted in counts),
            most_staged_bytes=max(counted["staged"] for counted in counts),
            peak_rss_bytes=max(counted["rss"] for counted in counts),
            peak_gpu_bytes=max(counted["gpu"] for counted in counts),
            ranks=world_size,
            device=describe(context.device),
        )
    parallel.shutdown()


def cpu_seconds(engine: VLLMEngine | None) -> float:
    """What the engine's process has computed for so far."""
    if engine is None:
        return 0.0
    times = psutil.Process(engine.pid).cpu_times()
    return float(times.user + times.system)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tensor", type=int, default=1, help="tensor-parallel ranks")
    parser.add_argument("--pipeline", type=int, default=1, help="pipeline stages")
    parser.add_argument("--hosts", type=int, default=1, help="machines that the ranks are counted as")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="seconds on any machine; its figures mean nothing")
    parser.add_argument("--model", type=Path, help="a Hugging Face model instead of a random one of 112 M parameters")
    parser.add_argument("--vllm-log", type=Path, help=argparse.SUPPRESS)  # set for the ranks
    options = parser.parse_args()
    if options.vllm_log is not None:
        actor = actor_config(options.device, options.tensor, options.pipeline)
        measure_refit(options.model, options.vllm_log, actor, options)
        return
    with tempfile.TemporaryDirectory() as scratch:
        arguments = [f"--vllm-log={scratch}/vllm.log"]
        if options.model is None:
            write_model(Path(scratch), "tiny" if options.tiny else "112m")
            arguments.append(f"--model={scratch}")
        ranks = options.tensor * options.pipeline
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        command = [sys.executable, *launcher, *sys.argv, *arguments]
        threads = {"OMP_NUM_THREADS": "1"} if options.device == "cpu" else {}
        sys.exit(subprocess.run(command, env=os.environ | threads, check=False).returncode)


def actor_config(device: str, tensor: int, pipeline: int) -> ActorConfig:
    """The defaults at this layout."""
    return replace(
        ActorConfig(**defaults("actor")),
        device=device,
        tensor_model_parallel_size=tensor,
        pipeline_model_parallel_size=pipeline,
    )


if __name__ == "__main__":
    main()
