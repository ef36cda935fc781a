"""Advantages of single trees by the shipped methods, for tests that start from them."""

from __future__ import annotations

from collections.abc import Sequence

from strategies import IB

from nemo_ibtpo.config.schema import IBScoreConfig
from nemo_ibtpo.methods import Method, StepAdvantages, TrajectoryAdvantages
from nemo_ibtpo.methods.dr_grpo import DrGRPO
from nemo_ibtpo.methods.grpo import GRPO
from nemo_ibtpo.methods.ibro import IBRO
from nemo_ibtpo.methods.ibtpo import IBTPO
from nemo_ibtpo.methods.spo import SPO
from nemo_ibtpo.methods.treepo import TreePO
from nemo_ibtpo.methods.treerl import TreeRL
from nemo_ibtpo.tree.tree import Tree

METHODS: dict[str, Method] = {
    "ibtpo": IBTPO(zero_variance="drop", ib_coef=0.1, std_eps=0.0),
    "grpo": GRPO(zero_variance="drop"),
    "dr_grpo": DrGRPO(zero_variance="drop"),
    "ibro": IBRO(zero_variance="drop", entropy_coef=0.1),
    "treerl": TreeRL(zero_variance="drop"),
    "treepo": TreePO(zero_variance="drop"),
    "spo": SPO(zero_variance="drop"),
}


def ibtpo(tree: Tree, ib_coef: float, ib_score: IBScoreConfig) -> StepAdvantages:
    return IBTPO(zero_variance="drop", ib_coef=ib_coef, std_eps=0.0).advantages(tree, ib_score)


def grpo(tree: Tree) -> TrajectoryAdvantages:
    return GRPO(zero_variance="drop").advantages(tree, IB)


def treerl(tree: Tree) -> StepAdvantages:
    return TreeRL(zero_variance="drop").advantages(tree, IB)


def spo(tree: Tree) -> StepAdvantages:
    return SPO(zero_variance="drop").advantages(tree, IB)


def treepo(trees: Sequence[Tree]) -> Sequence[TrajectoryAdvantages]:
    return METHODS["treepo"].of_update(trees, IB)
