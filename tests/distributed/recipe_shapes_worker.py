"""Models of test_recipes.py: built without memory, one stage after the other, each in its recipe's layout."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoConfig

from nemo_ibtpo.config.loader import compose
from nemo_ibtpo.megatron.architecture import architecture_from_config
from nemo_ibtpo.megatron.cpu import cuda_on_cpu
from nemo_ibtpo.megatron.model import build_model, transformer_config
from nemo_ibtpo.megatron.weights import global_parameters, rules


def shapes(name: str, world_size: int, card: str) -> dict[str, Any]:
    """Parameters of the whole model, put together from the first rank of every pipeline stage."""
    config = compose(name, [])
    architecture = architecture_from_config(AutoConfig.from_pretrained(card))
    actor = config.actor
    tensor, stages = actor.tensor_model_parallel_size, actor.pipeline_model_parallel_size
    parameters, names, layers = 0, set(), 0
    for stage in range(stages):
        rank = stage * world_size // stages
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
        with cuda_on_cpu():
            parallel_state.initialize_model_parallel(
                tensor_model_parallel_size=tensor,
                pipeline_model_parallel_size=stages,
                context_parallel_size=actor.context_parallel_size,
                expert_model_parallel_size=actor.expert_model_parallel_size,
                expert_tensor_parallel_size=1,
                create_gloo_process_groups=False,
            )
            cpu = torch.device("cpu")
            with torch.device("meta"):
                chunks = build_model(
                    architecture, transformer_config(architecture, actor, torch.bfloat16, cpu), torch.device("meta")
                )
        for key, parameter in global_parameters(chunks, architecture).items():
            assert parameter.is_meta
            if ".mlp.experts." in key:
                copies = actor.expert_model_parallel_size
            else:
                copies = tensor if getattr(parameter, "tensor_model_parallel", False) else 1
            parameters += 0 if key in names else parameter.numel() * copies
            names.add(key)
        layers += sum(len(chunk.decoder.layers) for chunk in chunks)
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
    experts = architecture.experts.number // actor.expert_model_parallel_size if architecture.experts else 0
    expected = {key for key, rule in rules(architecture).items() if rule.expert is None or rule.expert < experts}
    return {
        "parameters": parameters,
        "layers": layers == architecture.num_layers,
        "unknown": sorted(names - set(rules(architecture))),
        "missing": sorted(expected - names),
    }


def main() -> None:
    asked = json.loads(sys.argv[2])
    Path(sys.argv[1]).write_text(json.dumps({name: shapes(name, *where) for name, where in asked.items()}))


if __name__ == "__main__":
    main()
