"""Every recipe's model is built in its own layout, and small copies of the recipes train.

Why it matters: that a layout divides a model, that the stages together are the whole model and that the flags go
together should be known before GPUs are rented. Layouts of up to 64 ranks are built one stage at a time on the meta
device, with process groups that only know their sizes; their parameters add up to those of the Hugging Face model.
Recipes whose model fits four ranks take two steps on gloo with the same layout and flags and a toy model of the same
family, dtype and sizes apart; of context-parallel ranks these have two. Not exercised: recipes beyond four ranks in
training, GPUs, memory. The recipe ``tiny`` itself trains in ``tests/e2e/test_train.py``.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from distributed.launch import run_ranks
from large_recipes import LARGE, PARAMETERS, SMOLLM2, SMOLLM2_CONFIG, card, layout

from nemo_ibtpo.config.loader import compose

IBTPO = [*(name for name in LARGE if name.startswith("ibtpo-")), SMOLLM2]  # a twin has the same layout


def fits_four_ranks(name: str) -> bool:
    asked = layout(name)
    return math.lcm(asked.tensor * min(asked.context, 2), asked.expert) * asked.pipeline <= 4


def model_of(name: str) -> str:
    return SMOLLM2 if name == SMOLLM2 else Path(compose(name, []).model.path).name


HELD = sorted(filter(fits_four_ranks, [*LARGE, SMOLLM2]), key=lambda name: layout(name).tensor)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    directory = tmp_path_factory.mktemp("shapes")
    SMOLLM2_CONFIG.save_pretrained(directory)
    cards = {name: card(model_of(name)) for name in IBTPO} | {SMOLLM2: directory / "config.json"}
    asked = json.dumps({name: (layout(name).ranks, str(cards[name])) for name in IBTPO})
    return run_ranks(1, "recipe_shapes_worker.py", directory / "results.json", asked)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    large = [name for name in HELD if name != SMOLLM2]
    architectures = {name: json.loads(card(model_of(name)).read_text())["architectures"][0] for name in large}
    architectures[SMOLLM2] = "LlamaForCausalLM"
    output = tmp_path_factory.mktemp("trained") / "results.json"
    return run_ranks(4, "recipes_worker.py", output, json.dumps(architectures))


@pytest.mark.parametrize("name", IBTPO)
def test_all_ranks_together_hold_the_model(shapes: dict[str, dict[str, Any]], name: str) -> None:
    assert shapes[name] == {"parameters": PARAMETERS[model_of(name)], "layers": True, "unknown": [], "missing": []}


@pytest.mark.parametrize("name", HELD)
def test_a_small_copy_trains_two_steps(trained: dict[str, dict[str, Any]], name: str) -> None:
    result = trained[name]
    assert result["trajectories"] == compose(name, []).sampler.trajectories_per_prompt
    assert all(math.isfinite(loss) for loss in result["losses"])
    assert result["moved"] == 1.0, "every weight gets a gradient"
