"""Whether a run may go on from a checkpoint: what has to be the same, and how a difference is described.

A setting may change between runs if training goes on as it would have, up to rounding: the layout over ranks, sizes
of buffers, how often something is saved or evaluated, where files lie. Data and model are compared by their
contents, not by their paths.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_ibtpo.config.dotted import by_dotted_key
from nemo_ibtpo.config.schema import RunConfig

# Sections and keys that may differ.
_FREE = {
    "actor",
    "checkpoint",
    "data",  # by digest, which covers questions, answers, verifiers and prompts
    "logger",
    "model.path",  # by digest
    "name",
    "output_dir",
    "probe",
    "reward.num_workers",
    "rollout",
    "sampler.max_trees_in_flight",
    "trainer.export_period",
    "trainer.max_sampled_tokens",
    "trainer.max_steps",  # matters to a decay over the whole run, below
    "trainer.max_time",
    "trainer.val_period",
}
# Those inside them that may not.
_FIXED = {
    "actor.moe_aux_loss_coef",
    "actor.use_distributed_optimizer",  # the state has another form
    "data.shuffle",
    "rollout.max_new_tokens",
    "rollout.temperature",
    "rollout.top_p",
    "rollout.top_k",
    "rollout.stop",
}
DIGESTS = {
    "model": "the weights or the tokenizer in model.path",
    "training": "the training problems (data.train, template or tokenizer)",
    "validation": "the validation problems (data.validation, template or tokenizer)",
}


def differences(saved: Mapping[str, Any], now: Mapping[str, Any], config: RunConfig) -> list[str]:
    """What stands in the way of going on, each in a few words; nothing if the runs are comparable.

    Args:
        saved: ``config`` (nested plain values) and ``digests`` of the run that wrote the checkpoint.
        now: the same of this run.
        config: of this run.
    """
    found = [
        f"{meaning} changed" for name, meaning in DIGESTS.items() if saved["digests"][name] != now["digests"][name]
    ]
    before, after = by_dotted_key(saved["config"]), by_dotted_key(now["config"])
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key) and _matters(key, config):
            found.append(f"{key} was {_shown(before, key)}, is {_shown(after, key)}")
    return found


def _matters(key: str, config: RunConfig) -> bool:
    if key == "trainer.max_steps":
        return config.optimizer.decay_style != "constant" and config.optimizer.decay_steps == 0
    parts = key.split(".")
    prefixes = {".".join(parts[: depth + 1]) for depth in range(len(parts))}
    return bool(prefixes & _FIXED) or not prefixes & _FREE


def _shown(values: Mapping[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "unknown"
