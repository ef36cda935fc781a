"""Ranks of test_gradients.py: gradients of one optimizer step under many ways to cut it up."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from layouts import enter
from loss_settings import loss_config
from packing_oracles import unpack_paths
from parity_worker import actor_config
from torch import Tensor
from toy_models import VOCAB, checkpoint_names, hf_weights, random_model, random_tree, shared_model

from nemo_ibtpo.collectives import all_ranks
from nemo_ibtpo.config.schema import ActorConfig, IBScoreConfig, LossConfig, OptimizerConfig
from nemo_ibtpo.losses import ClippedLoss, LossInputs, LossOutput, with_importance
from nemo_ibtpo.megatron import inputs, tree_attention
from nemo_ibtpo.megatron.actor import MegatronActor
from nemo_ibtpo.megatron.architecture import architecture_from_config
from nemo_ibtpo.megatron.inputs import predicted_here
from nemo_ibtpo.methods import Method, StepAdvantages
from nemo_ibtpo.methods.credit import credit_nodes
from nemo_ibtpo.methods.grpo import GRPO
from nemo_ibtpo.methods.ibro import IBRO
from nemo_ibtpo.methods.ibtpo import IBTPO
from nemo_ibtpo.tree.microbatches import assemble, schedule
from nemo_ibtpo.tree.node import ROOT
from nemo_ibtpo.tree.packing import IntArray, PackedBatch, layout, pack_tree
from nemo_ibtpo.tree.tree import Tree

TEMPERATURE = 0.7
IBRO_COEF, ENTROPY_BONUS = 0.2, 0.05
IB_SCORE = IBScoreConfig(beta=5.0, step_probability="geometric_mean", value_estimator="leaf_mean", selection="paper")
OPTIMIZER = OptimizerConfig(
    lr=1e-3,
    min_lr=0.0,
    warmup_steps=0,
    decay_steps=0,
    decay_style="constant",
    weight_decay=0.0,
    adam_beta1=0.9,
    adam_beta2=0.999,
    adam_eps=1e-8,
    clip_grad=0.0,
)
DEFAULT: dict[str, Any] = {
    "device": "cpu",
    "family": "qwen3",
    "tp": 1,
    "pp": 1,
    "vpp": None,
    "sp": False,
    "cp": 1,
    "ep": 1,
    "overlap": False,
    "bucket": None,
    "recompute": "none",
    "max_tokens": 4096,
    "fused_logprobs": True,
    "method": "ibtpo",
    "normalization": "token_mean",
    "token_weight": "trajectories",
    "form": "packed",
    "old": "given",  # or "training pass": the old policy is the model itself
    "tis_cap": 0.0,
    "kept": False,  # tokens were drawn from sets, over which the policy is renormalised
    "mistake": None,
}


# Gradients by name; per tree and node, log-probs of an old and of a reference policy.
Reference = tuple[dict[str, Tensor], list[list[tuple[Tensor, Tensor]]]]


def loss_of(case: dict[str, Any]) -> LossConfig:
    return loss_config(
        "clipped",
        kl_coef=0.05,
        entropy_coef=ENTROPY_BONUS if case["method"] == "ibro" else 0.0,
        normalization=case["normalization"],
        token_weight=case["token_weight"],
        tis_cap=case["tis_cap"],
    )


METHODS: dict[str, Method] = {
    "ibtpo": IBTPO(zero_variance="drop", ib_coef=0.1, std_eps=0.0),
    "grpo": GRPO(zero_variance="drop"),
    "ibro": IBRO(zero_variance="drop", entropy_coef=IBRO_COEF),
}


def make_trees(kept: bool) -> list[Tree]:
    rng = np.random.default_rng(11)
    trees = [random_tree(rng, rollouts=6, prompt_id=str(i)) for i in range(6)]
    for node in (node for tree in trees for node in tree.nodes[1:] if kept):
        sets = [{token, *rng.choice(VOCAB, rng.integers(1, VOCAB), replace=False).tolist()} for token in node.tokens]
        node.kept = tuple(np.array(sorted(own), dtype=np.int32).tobytes() for own in sets)
    return trees


def other_policies(
    tree: Tree, model_rows: Callable[[Sequence[int]], Tensor], old: str
) -> list[tuple[Tensor, Tensor]]:
    """Per node, log-probs of an old and a reference policy: the model's, shifted far enough that clips occur.

    The old policy is not shifted where it is the model itself.
    """
    policies = []
    for node in tree.nodes[1:]:
        prefix = [t for i in tree.path(node.parent) for t in tree.nodes[i].tokens]
        rows = renormalised(model_rows([*prefix, *node.tokens]).detach()[len(prefix) - 1 :], node.kept)
        own = rows[torch.arange(len(rows)), torch.tensor(node.tokens)]
        generator = torch.Generator().manual_seed(1000 * int(tree.prompt_id) + node.index)
        shift = torch.randn(2, len(own), generator=generator, dtype=torch.float64)
        policies.append((own + 0.3 * (old == "given") * shift[0], own + 0.5 * shift[1]))
    return policies


def renormalised(rows: Tensor, kept: Sequence[bytes]) -> Tensor:
    """Log-probabilities [N, V] of the distributions over the sets; the whole ones where there are none."""
    if not kept:
        return rows
    outside = torch.ones(rows.shape, dtype=torch.bool)
    for row, own in zip(outside, kept, strict=True):
        row[torch.from_numpy(np.frombuffer(own, np.int32).astype(np.int64))] = False
    return rows.masked_fill(outside, -1e30).log_softmax(dim=-1)


def reference_gradients(
    family: str, method: str, normalization: str, token_weight: str, old: str, tis_cap: float, kept: bool
) -> Reference:
    """Every trajectory as a sequence of its own through transformers in float64, summed as the formulas say."""
    case = {"method": method, "normalization": normalization, "token_weight": token_weight, "tis_cap": tis_cap}
    trees = make_trees(kept)
    model = random_model(family, dtype=torch.float64)

    def model_rows(tokens: Sequence[int]) -> Tensor:
        return torch.log_softmax(model(torch.tensor(tokens)[None]).logits[0] / TEMPERATURE, dim=-1)[:-1]

    config = loss_of(case)
    policies = [other_policies(tree, model_rows, old) for tree in trees]
    total, denominator = torch.zeros((), dtype=torch.float64), 0.0
    for tree, policy in zip(trees, policies, strict=True):
        (advantages,) = METHODS[case["method"]].of_update([tree], IB_SCORE)
        assert advantages is not None
        paths = [tree.path(leaf.index)[1:] for leaf in tree.leaves() for _ in range(leaf.draws)]
        for path in paths:
            tokens = [t for i in (ROOT, *path) for t in tree.nodes[i].tokens]
            rows = model_rows(tokens)[len(tree.nodes[ROOT].tokens) - 1 :]
            rows = renormalised(rows, [own for i in path for own in tree.nodes[i].kept])
            logprobs = rows[torch.arange(len(rows)), torch.tensor(tokens[-len(rows) :])]
            entropies = -(rows.exp() * rows).sum(dim=-1)
            old_logprobs = torch.cat([policy[i - 1][0] for i in path])
            reference = torch.cat([policy[i - 1][1] for i in path])
            per_node = (
                [advantages.total[i] for i in path]
                if isinstance(advantages, StepAdvantages)
                else [advantages.at_leaf[path[-1]]] * len(path)
            )
            advantage = torch.cat(
                [torch.full((len(tree.nodes[i].tokens),), float(a)) for i, a in zip(path, per_node, strict=True)]
            ).double()
            ratio = (logprobs - old_logprobs).exp()
            if tis_cap:
                behaviour = torch.tensor([p for i in path for p in tree.nodes[i].logprobs], dtype=torch.float64)
                advantage = advantage * (old_logprobs - behaviour).exp().clamp(max=tis_cap)
            clipped = ratio.clamp(1 - config.clip_eps_low, 1 + config.clip_eps_high)
            delta = reference - logprobs
            loss = -torch.minimum(ratio * advantage, clipped * advantage)
            loss = loss + config.kl_coef * (delta.exp() - delta - 1)
            if case["method"] == "ibro":
                loss = loss - IBRO_COEF * advantage * entropies - ENTROPY_BONUS * entropies
            if case["token_weight"] == "hierarchical":  # what each draw has of its parent's weight, down the path
                unit = float(len(paths))
                for node in path:
                    siblings = tree.nodes[tree.nodes[node].parent].children
                    unit *= tree.nodes[node].draws / sum(tree.nodes[s].draws for s in siblings)
                unit /= tree.nodes[path[-1]].draws
                total, denominator = total + unit * loss.sum(), denominator + unit * len(logprobs)
            elif case["normalization"] == "token_mean":
                total, denominator = total + loss.sum(), denominator + len(logprobs)
            else:
                total = total + loss.mean() / len(paths)
        denominator += case["normalization"] == "sequence_mean"
    (total / denominator).backward()
    names = {id(p): name for name, p in model.named_parameters()}
    return checkpoint_names(model, {names[id(p)]: p.grad for p in model.parameters()}), policies


def as_batch(tree: Tree, policy: list[tuple[Tensor, Tensor]], case: dict[str, Any]) -> tuple[PackedBatch, float]:
    (advantages,) = METHODS[case["method"]].of_update([tree], IB_SCORE)
    credit = credit_nodes(tree, advantages, case["normalization"], case["token_weight"])
    batch, node_T = pack_tree(tree, credit), layout(tree).node
    policies = [np.zeros(len(batch), dtype=np.float32) for _ in range(2)]
    for which, values in enumerate(policies):
        for node in range(1, len(tree.nodes)):
            values[node_T == node] = policy[node - 1][which].numpy()
    batch = replace(batch, reference_logprobs=policies[1])
    if case["old"] == "given":
        batch = replace(batch, old_logprobs=policies[0])
    if case["mistake"] == "weight 1 per unique token":
        scale = np.maximum(batch.weight, 1e-9)
        scaled = {name: getattr(batch, name) / scale for name in ("weight", "positive", "negative")}
        batch = replace(batch, **scaled)
    return spoil(batch, case["mistake"]), credit.denominator


def spoil(batch: PackedBatch, mistake: str | None) -> PackedBatch:
    index = np.arange(len(batch))
    if mistake == "rotary by storage index":
        return replace(batch, depth=index)
    if mistake == "labels shifted by one":
        return replace(batch, predecessor=index - 1)
    return batch


def predicted_by_the_token_stored_before(batch: PackedBatch, own_L: IntArray) -> tuple[IntArray, IntArray]:
    """Each rank takes its own tokens and predicts them from what it holds one place before: shifted labels."""
    here = np.flatnonzero(np.isin(np.flatnonzero(batch.in_loss), own_L[1:]))
    return here, np.searchsorted(own_L, np.flatnonzero(batch.in_loss)[here]) - 1


def predicted_where_the_token_lies(batch: PackedBatch, own_L: IntArray) -> tuple[IntArray, IntArray]:
    """Each rank takes its own tokens, and leaves out those whose predecessor another rank holds."""
    here, rows = predicted_here(batch, own_L)
    own = np.isin(np.flatnonzero(batch.in_loss)[here], own_L)
    return here[own], rows[own]


class OwnGradientsAlone(tree_attention._Exchange):
    """Each rank keeps the gradients that its own queries give to the keys of its own tokens."""

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].index_select(0, ctx.share.queries), None


def context_mistake(mistake: str | None) -> contextlib.AbstractContextManager[Any]:
    """Within it, context-parallel ranks do something wrong."""
    owners = {
        "labels shifted by one on a rank": predicted_by_the_token_stored_before,
        "wrong owner of a predecessor": predicted_where_the_token_lies,
    }
    if mistake in owners:
        return mock.patch.object(inputs, "predicted_here", owners[mistake])
    if mistake == "gradients of keys not summed":
        return mock.patch.object(tree_attention, "_Exchange", OwnGradientsAlone)
    return contextlib.nullcontext()


def flat(batch: PackedBatch, tree: Tree, case: dict[str, Any]) -> list[PackedBatch]:
    """The same credit on trees that share nothing: one chain per trajectory."""
    (advantages,) = METHODS[case["method"]].of_update([tree], IB_SCORE)
    chains, node_T = [], layout(tree).node
    for path in unpack_paths(batch):
        leaf = int(node_T[path[-1]])
        draws = tree.nodes[leaf].draws
        length = tree.depth_tokens(leaf)
        unit = 1.0 if case["normalization"] == "token_mean" else 1 / (tree.num_trajectories * length)
        per_token = (
            advantages.total[node_T[path]]
            if isinstance(advantages, StepAdvantages)
            else np.full(len(path), advantages.at_leaf[leaf])
        )
        weight = np.where(batch.sampled[path], unit * draws, 0)
        n = len(path)
        own = {f: values[path] for f in PackedBatch.__dataclass_fields__ if (values := getattr(batch, f)) is not None}
        own |= {
            "predecessor": np.arange(n) - 1,
            "subtree_end": np.full(n, n),
            "weight": weight.astype(np.float32),
            "positive": (weight * np.maximum(per_token, 0)).astype(np.float32),
            "negative": (weight * np.maximum(-per_token, 0)).astype(np.float32),
        }
        chains.append(PackedBatch(**own))
    return chains


def reference_of(case: dict[str, Any]) -> tuple[Any, ...]:
    """What the reference of a case depends on."""
    keys = ("family", "method", "normalization", "token_weight", "old", "tis_cap", "kept")
    return tuple(case[key] for key in keys)


def all_references(cases: Sequence[dict[str, Any]]) -> dict[tuple[Any, ...], Reference]:
    """The references of all cases on every rank; each rank computes some of them."""
    ranks, needed = all_ranks(), list(dict.fromkeys(map(reference_of, cases)))
    mine = [reference_gradients(*reference) for reference in ranks.mine(needed)]
    return dict(zip(needed, ranks.gather(mine, len(needed)), strict=True))


def gradient_error(
    case: dict[str, Any], distributed_optimizer: bool = False, reference: Reference | None = None
) -> float:
    """Largest relative error over all parameters of this case's gradients against the reference."""
    trees = make_trees(case["kept"])
    expected, policies = reference or reference_gradients(*reference_of(case))
    actor_config = ActorConfig(
        device=case["device"],
        tensor_model_parallel_size=case["tp"],
        pipeline_model_parallel_size=case["pp"],
        virtual_pipeline_model_parallel_size=case["vpp"],
        context_parallel_size=case["cp"],
        expert_model_parallel_size=case["ep"],
        moe_aux_loss_coef=0.0,
        sequence_parallel=case["sp"],
        use_distributed_optimizer=distributed_optimizer,
        overlap_grad_reduce=case["overlap"],
        overlap_param_gather=case["overlap"] and distributed_optimizer,
        grad_bucket_size=case["bucket"],
        recompute=case["recompute"],
        offload="none",
        max_tokens_per_microbatch=case["max_tokens"],
        fused_logprobs=case["fused_logprobs"],
        logprob_chunk_tokens=13,
        collective_timeout_s=600.0,
    )
    context = enter(actor_config)
    model = shared_model(case["family"])
    actor = MegatronActor(
        architecture_from_config(model.config),
        hf_weights(model),
        actor=actor_config,
        optimizer=OPTIMIZER,
        total_updates=1,
        dtype=torch.float32,
        temperature=TEMPERATURE,
        keep_reference=False,
        context=context,
    )
    pairs = [as_batch(tree, policy, case) for tree, policy in zip(trees, policies, strict=True)]
    denominator = sum(share for _, share in pairs)
    batches = [batch for batch, _ in pairs]
    if case["form"] == "duplicated":
        batches = [chain for batch, tree in zip(batches, trees, strict=True) for chain in flat(batch, tree, case)]
    plan = schedule(
        batches,
        max_tokens=case["max_tokens"],
        num_ranks=actor.data_parallel_size,
        multiple_of=actor.microbatch_multiple,
        attention_weight=actor.attention_weight,
    )
    mine = [assemble(pieces, dict(enumerate(batches))) for pieces in plan.ranks[actor.data_parallel_rank]]
    own_loss = with_importance(METHODS[case["method"]].with_term(ClippedLoss(loss_of(case))), case["tis_cap"])

    def loss(tokens: LossInputs) -> LossOutput:
        if case["mistake"] == "mean of micro-batch means":
            over = float(tokens.weight.sum()) * len(mine) * actor.data_parallel_size or 1.0
            tokens = replace(tokens, denominator=over)
        return own_loss(tokens)

    actor.prepare_for_training()
    with context_mistake(case["mistake"]):
        actor.train_step(mine, loss, denominator)
    if distributed_optimizer:
        # Adam's first step moves each weight by lr * g / (|g| + eps): compare the weights instead.
        before = hf_weights(model)
        error = 0.0
        for name, weight in actor.named_weights():
            g = expected[name]
            step = OPTIMIZER.lr * g / (g.abs() + OPTIMIZER.adam_eps)
            big = g.abs() > 1e-6  # where g is rounding noise its sign is, too
            difference = (before[name].double() - weight.double() - step)[big]
            error = max(error, float(difference.abs().max() / OPTIMIZER.lr) if len(difference) else 0.0)
    else:
        error = max(
            float((gradient.cpu().double() - expected[name]).norm() / expected[name].norm())
            for name, gradient in actor.named_gradients()
        )
    worst = torch.tensor(error, dtype=torch.float64)
    dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    return float(worst)


def main() -> None:
    from test_gradients import CASES, DISTRIBUTED_OPTIMIZER_CASES, EIGHT_RANKS_CASES

    plain, sharded_state = {
        "four": (CASES, DISTRIBUTED_OPTIMIZER_CASES),
        "eight": (EIGHT_RANKS_CASES, dict[str, Any]()),
    }[sys.argv[2]]
    cases = [(name, DEFAULT | case, False) for name, case in plain.items()]
    cases += [(name, DEFAULT | case, True) for name, case in sharded_state.items()]
    cases.sort(key=lambda entry: tuple(entry[1][key] or 0 for key in ("tp", "pp", "vpp", "cp", "ep")))
    enter(actor_config(1, 1, False, None))  # starts torch.distributed
    references = all_references([case for _, case, _ in cases])
    results = {name: gradient_error(case, sharded, references[reference_of(case)]) for name, case, sharded in cases}
    if dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
