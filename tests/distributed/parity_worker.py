"""Ranks of test_parity.py: logits, log-probabilities and weights for others under every layout of four ranks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from layouts import enter
from packing_oracles import pack_trees, unpack_paths
from toy_models import hf_weights, random_tree, shared_model

from nemo_ibtpo.config.schema import ActorConfig
from nemo_ibtpo.megatron.actor import MegatronActor
from nemo_ibtpo.megatron.architecture import architecture_from_config
from nemo_ibtpo.rollout.transport.host_writer import HostWriter
from nemo_ibtpo.tree.packing import pack_tree

# Tensor- and pipeline-parallel size, sequence parallelism, chunks on a stage[, expert-, context-parallel size].
Layout = (
    tuple[int, int, bool, int | None]
    | tuple[int, int, bool, int | None, int]
    | tuple[int, int, bool, int | None, int, int]
)


def actor_config(
    tensor: int, pipeline: int, sequence: bool, chunks: int | None, experts: int = 1, context: int = 1
) -> ActorConfig:
    return ActorConfig(
        device="cpu",
        tensor_model_parallel_size=tensor,
        pipeline_model_parallel_size=pipeline,
        virtual_pipeline_model_parallel_size=chunks,
        context_parallel_size=context,
        expert_model_parallel_size=experts,
        moe_aux_loss_coef=0.0,
        sequence_parallel=sequence,
        use_distributed_optimizer=True,
        overlap_grad_reduce=False,
        overlap_param_gather=False,
        grad_bucket_size=None,
        recompute="none",
        offload="none",
        max_tokens_per_microbatch=512,
        fused_logprobs=True,
        logprob_chunk_tokens=7,
        collective_timeout_s=600.0,
    )


BUCKET_BYTES = 4096  # many buckets, and weights that are larger than one
# Hosts of the four ranks, and the ranks that own an engine.
HOSTS: dict[str, tuple[str, list[int]]] = {
    "one host": ("aaaa", [0]),
    "two hosts, two engines on each": ("aabb", [0, 1, 2, 3]),
    "two hosts, an engine on the second": ("abab", [1]),
}


def check(family: str, layout: Layout) -> dict[str, float]:
    model = shared_model(family)
    context = enter(actor_config(*layout))
    temperature = 0.7
    actor = MegatronActor(
        architecture_from_config(model.config),
        hf_weights(model),
        actor=actor_config(*layout),
        optimizer=None,
        total_updates=1,
        dtype=torch.float32,
        temperature=temperature,
        keep_reference=False,
        context=context,
    )
    rng = np.random.default_rng(5)
    batches = [
        pack_trees([random_tree(rng), random_tree(rng)]),
        pack_tree(random_tree(rng)),
    ]
    logit_error = logprob_error = 0.0
    for batch, logits, logprobs in zip(batches, actor.logits(batches), actor.logprobs(batches), strict=True):
        for path in unpack_paths(batch):
            tokens = torch.from_numpy(batch.tokens[path])
            with torch.no_grad():
                expected = model(tokens[None]).logits[0]
            logit_error = max(logit_error, float(np.abs(logits[path] - expected.numpy()).max()))
            log_softmax = torch.log_softmax(expected.double() / temperature, dim=-1)
            for place in range(1, len(path)):
                if batch.in_loss[path[place]]:
                    error = abs(float(log_softmax[place - 1, tokens[place]]) - float(logprobs[path[place]]))
                    logprob_error = max(logprob_error, error)
    state = hf_weights(model)
    exported = dict(actor.named_weights())
    different = sum(not torch.equal(tensor, state[name]) for name, tensor in exported.items())
    expected_names = set(state) - ({"lm_head.weight"} if model.config.tie_word_embeddings else set())
    result = {
        "logit_error": logit_error,
        "logprob_error": logprob_error,
        "different_weights": different,
        "names_differ": float(set(exported) != expected_names),
    }
    for world, (hosts, engine_ranks) in HOSTS.items():
        host = hosts[dist.get_rank()]
        writer = HostWriter(actor, engine_ranks, host, BUCKET_BYTES)
        names = [name for bucket in writer.write(actor) for name in bucket]
        weights = {} if writer.memory is None else writer.memory.weights
        needed = expected_names if host in {hosts[rank] for rank in engine_ranks} else set()
        wrong = [name for name, tensor in weights.items() if not torch.equal(tensor, state[name])]
        result[f"{world}: wrong"] = float(len(wrong) + (len(names) != len(needed)) + len(set(names) ^ needed))
        writer.close()
    return result


def main() -> None:
    from test_parity import CASES

    results = {}
    enter(actor_config(1, 1, False, None))  # starts torch.distributed
    for name, (family, layout) in sorted(CASES.items(), key=lambda case: str(case[1][1])):
        mine = check(family, layout)
        everyone: list[dict[str, float]] = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(everyone, mine)
        results[name] = {kind: max(rank[kind] for rank in everyone) for kind in mine}
    if dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
