"""Scaled rotary positions: the actor and the engines rotate as transformers does, beyond the original length too.

Why it matters: a wrong frequency or attention factor shows only in long sequences, where the actor would then judge
tokens by another model than the one that wrote them.

Every type, in both spellings of config.json, in float32, on trees whose paths are three times as long as what the
model is said to have been trained on. transformers itself is the reference, on paths of the declared length; on
shorter ones the model that the embedded engine loads, since plain transformers would rotate them otherwise (dynamic,
longrope). vLLM is compared in ``tests/unit/rollout/test_vllm_engine.py``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conversion_models import write_toy_model
from packing_oracles import unpack_paths
from toy_models import VOCAB, config_of
from transformers import AutoModelForCausalLM

from nemo_ibtpo.config.loader import default_values
from nemo_ibtpo.config.rope import at_length, positions
from nemo_ibtpo.config.schema import ActorConfig
from nemo_ibtpo.megatron import parallel
from nemo_ibtpo.megatron.actor import MegatronActor
from nemo_ibtpo.megatron.architecture import load_architecture
from nemo_ibtpo.megatron.safetensors_io import SafetensorsDirectory, write_model
from nemo_ibtpo.rollout.factory import load_model
from nemo_ibtpo.rollout.vllm.compat import rotary_overrides
from nemo_ibtpo.tree.packing import pack_tree
from nemo_ibtpo.tree.tree import ROOT, Tree

ORIGINAL, LONGEST = 16, 48
LISTS = {
    "short_factor": [1.0 + 0.1 * i for i in range(8)],
    "long_factor": [1.5 + 0.5 * i for i in range(8)],
    "original_max_position_embeddings": ORIGINAL,
}
# Family, max_position_embeddings, rotary parameters.
CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "linear": ("llama", ORIGINAL, {"rope_type": "linear", "factor": 4}),
    "dynamic": ("llama", ORIGINAL, {"rope_type": "dynamic", "factor": 4.0}),
    "yarn of Qwen2.5": (
        "qwen2",
        ORIGINAL,
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL},
    ),
    "yarn of Qwen3": (
        "qwen3",
        4 * ORIGINAL,
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL},
    ),
    "yarn with everything": (
        "llama",
        64,
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL}
        | {"mscale": 1.3, "mscale_all_dim": 0.7, "beta_fast": 16, "beta_slow": 2, "truncate": False},
    ),
    "longrope": ("qwen3", 64, {"rope_type": "longrope", **LISTS}),
    "longrope with a factor": ("qwen3", 64, {"rope_type": "longrope", **LISTS, "factor": 9.0}),
    "longrope with attention_factor": ("mistral", 64, {"rope_type": "longrope", **LISTS, "attention_factor": 1.4}),
}


def write(directory: Path, case: str, spelling: int) -> Path:
    family, stated, rope = CASES[case]
    config = config_of(family)
    config.max_position_embeddings, config.head_dim = stated, 16
    config.rope_parameters = rope | {"rope_theta": 500.0}
    write_toy_model(directory, config=config)
    if spelling == 4:
        file = directory / "config.json"
        values = json.loads(file.read_text())
        rope = values.pop("rope_parameters")
        values |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": {"type": rope.pop("rope_type"), **rope}}
        file.write_text(json.dumps(values))
    return directory


@pytest.fixture(scope="module")
def context() -> Iterator[tuple[ActorConfig, parallel.ParallelContext]]:
    prefix = "actor."
    settings = {name.removeprefix(prefix): v for name, v in default_values().items() if name.startswith(prefix)}
    config = ActorConfig(**settings | {"device": "cpu"})
    yield config, parallel.initialize(config, 0)
    parallel.shutdown()


def long_tree() -> Tree:
    """Branches beyond the original length; two paths of the declared length, and a shorter one."""
    draw = np.random.default_rng(3)
    tree = Tree("p", draw.integers(0, VOCAB, 6).tolist())
    for lengths in ((20, LONGEST - 26), (LONGEST - 6,), (12,)):
        steps = [(draw.integers(0, VOCAB, n).tolist(), [-1.0] * n) for n in lengths]
        tree.insert(ROOT, steps, "eos", round=0)
    inner = next(node.index for node in tree.nodes if not node.is_leaf and node.index != ROOT)
    n = LONGEST - 26
    tree.insert(inner, [(draw.integers(0, VOCAB, n).tolist(), [-1.0] * n)], "eos", round=1)
    return tree


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(
    tmp_path: Path, case: str, context: tuple[ActorConfig, parallel.ParallelContext]
) -> None:
    directory = write(tmp_path / "hf", case, spelling=4 if "dynamic" in case or "yarn of" in case else 5)
    plain = AutoModelForCausalLM.from_pretrained(directory).eval()
    sampled_from = load_model(directory, dtype=torch.float32, device="cpu", max_model_len=LONGEST)
    actor = MegatronActor(
        load_architecture(directory, LONGEST),
        SafetensorsDirectory(directory),
        actor=context[0],
        optimizer=None,
        total_updates=1,
        dtype=torch.float32,
        temperature=1.0,
        keep_reference=False,
        context=context[1],
    )
    batch = pack_tree(long_tree())
    (logits,) = actor.logits([batch])
    lengths = []
    for path in unpack_paths(batch):
        tokens = torch.from_numpy(batch.tokens[path])[None]
        with torch.no_grad():
            engine = sampled_from(tokens).logits[0]
            expected = plain(tokens).logits[0] if len(path) == LONGEST else engine
        torch.testing.assert_close(engine, expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(torch.from_numpy(logits[path]), expected, rtol=0, atol=1e-4)
        lengths.append(len(path))
    assert sorted(lengths) == [18, LONGEST, LONGEST, LONGEST]


@pytest.mark.parametrize("spelling", [4, 5])
@pytest.mark.parametrize("case", ["yarn of Qwen2.5", "dynamic", "longrope"])
def test_an_export_is_read_alike_in_both_spellings(tmp_path: Path, case: str, spelling: int) -> None:
    source = write(tmp_path / "hf", case, spelling)
    write_model(tmp_path / "out", [("a", torch.zeros(2))], like=source, write=True)
    values = json.loads((tmp_path / "out" / "config.json").read_text())
    of_four = {name: value for name, value in values.items() if name != "rope_parameters"}
    rope = CASES[case][2]
    assert of_four["rope_theta"] == 500.0
    assert of_four["rope_scaling"] == rope
    for config in (values, of_four):
        (tmp_path / "out" / "config.json").write_text(json.dumps(config))
        read = load_architecture(tmp_path / "out", LONGEST)
        expected = load_architecture(source, LONGEST)
        assert torch.equal(read.inv_freq, expected.inv_freq) and read.rotary_scale == expected.rotary_scale
        assert positions(config) == 4 * ORIGINAL


def test_what_is_rotated_alike_anyway_is_left_as_it_is(tmp_path: Path) -> None:
    """So that an engine gets no overrides for the models that it serves as they are."""
    for family in ("llama", "qwen3"):
        config_of(family).save_pretrained(tmp_path / family)
        assert rotary_overrides(tmp_path / family, 256) == {}
    short = write(tmp_path / "short", "dynamic", 5)
    values = json.loads((short / "config.json").read_text())
    assert at_length(values, ORIGINAL)["rope_parameters"]["rope_theta"] == 500.0
