"""What a plan says of a refit: the bytes that no node could do without, spread over its ranks.

Why it matters: between nodes the weights of a large model are what a refit waits for. The expected bytes are worked
out here from the layout. Not exercised: a real network.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from nemo_ibtpo.config.loader import compose
from nemo_ibtpo.planning.assumptions import Assumptions
from nemo_ibtpo.planning.model_shape import find_config
from nemo_ibtpo.planning.planner import Lengths, Plan, default_world_size, make_plan
from nemo_ibtpo.planning.refit import refit_traffic
from nemo_ibtpo.rollout.transport.moves import Traffic


def plan_of(recipe: str, *words: str) -> tuple[Plan, Traffic]:
    config = compose(recipe, list(words))
    plan = make_plan(
        config, find_config(config.model.path)[0], default_world_size(config), Assumptions(), Lengths(None, None)
    )
    return plan, refit_traffic(config, plan.shape, plan.layout, plan.world_size, Assumptions())


def test_a_node_receives_what_it_lacks() -> None:
    """TP8 x PP4 on eight nodes: a stage lies on two of them, so that each lacks three quarters of the model."""
    plan, moved = plan_of("ibtpo-llama-3.3-70b-instruct-8n8g-tp8pp4")
    size = plan.shape.parameters * 2
    assert moved.network == pytest.approx(
        8 * size * 3 / 4, rel=0.01
    )  # norms are counted on each tensor-parallel rank
    assert sum(moved.written.values()) == pytest.approx(8 * size, rel=0.01)
    for by_rank in (moved.received, moved.written):
        assert max(by_rank.values()) == pytest.approx(sum(by_rank.values()) / 64, rel=0.1)
    slower = make_plan(
        plan.config,
        find_config(plan.config.model.path)[0],
        64,
        Assumptions(network_gb_s=0.4),
        Lengths(None, None),
    )
    assert slower.seconds["refit"] - plan.seconds["refit"] == pytest.approx(
        max(moved.sent.values()) * (1 / 0.4e9 - 1 / 40e9), rel=0.15
    )


def test_a_node_that_has_everything_writes_it_once() -> None:
    plan, moved = plan_of("ibtpo-qwen3-8b-base-1n8g-tp2pp1")
    size = plan.shape.parameters * 2
    assert moved.network == 0
    assert sum(moved.written.values()) == pytest.approx(size, rel=0.01)
    assert max(moved.written.values()) == pytest.approx(size / 8, rel=0.1)
    assert plan.memory.host["share of the node's copy for engines"] == pytest.approx(size / 8, rel=0.01)


def test_planning_needs_no_torch() -> None:
    program = "import sys, nemo_ibtpo.planning.planner; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
