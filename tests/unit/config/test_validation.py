"""Contradictions are refused before any work, each with a line that says what would be right.

Why this matters: the alternative is a shape error in the middle of Megatron, on all ranks, after minutes of loading.
Every rule has a case here, and the configuration all cases start from passes. Not exercised: what only torch can see
(whether there is a GPU) and what only the data can (``tests/unit/data``).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from model_directories import HF_CONFIG, write_model_directory

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.layout import check_model, engine_ranks
from nemo_ibtpo.config.loader import compose
from nemo_ibtpo.config.paths import conf_dir
from nemo_ibtpo.config.schema import RunConfig
from nemo_ibtpo.config.validation import check_output_dir, max_seconds, validate

RECIPE = """\
defaults: [config, {{override /data: reasoning_gym}}, _self_]
output_dir: {directory}/runs/mine
model: {{path: {directory}/model}}
actor: {{tensor_model_parallel_size: 2, pipeline_model_parallel_size: 2, sequence_parallel: true}}
data: {{train: {{path: chain_sum}}}}
trainer: {{max_steps: 10, num_prompts_per_step: 12, num_prompts_per_update: 6}}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    directory = tmp_path_factory.mktemp("run")
    write_model_directory(directory / "model")
    (directory / "mine.yaml").write_text(RECIPE.format(directory=directory))
    return compose(str(directory / "mine.yaml"), [])


def changed(config: Any, **changes: Any) -> Any:
    """The configuration with dotted keys replaced (``__`` for the dot)."""
    for key, value in changes.items():
        head, _, rest = key.partition("__")
        config = replace(config, **{head: changed(getattr(config, head), **{rest: value}) if rest else value})
    return config


def test_the_starting_point_is_valid_and_leaves_no_trace(config: RunConfig) -> None:
    validate(config, 4)
    validate(config, 8)
    assert not Path(config.output_dir).exists()


INDEPENDENT = {"sampler__name": "independent", "sampler__rounds": 1}


def method(name: str, **fields: Any) -> dict[str, Any]:
    """The section of a method of the package: ``method("ibro.IBRO", entropy_coef=0.1)``."""
    return {"method": {"class": f"nemo_ibtpo.methods.{name}", "zero_variance": "drop", **fields}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer__lr": 0.0}, "optimizer.lr=0.0 must be above 0"),
        ({"optimizer__min_lr": -1.0}, "optimizer.min_lr=-1.0 must not be negative"),
        ({"optimizer__min_lr": 1.0}, "optimizer.min_lr=1.0 is above optimizer.lr=1e-06"),
        ({"optimizer__adam_beta1": 1.0}, "optimizer.adam_beta1=1.0 must be at least 0 and below 1"),
        ({"optimizer__adam_beta2": -0.1}, "optimizer.adam_beta2=-0.1 must be at least 0 and below 1"),
        ({"optimizer__adam_eps": 0.0}, "optimizer.adam_eps=0.0 must be above 0"),
        ({"optimizer__weight_decay": -1.0}, "optimizer.weight_decay=-1.0 must not be negative"),
        ({"optimizer__clip_grad": -1.0}, "optimizer.clip_grad=-1.0 must not be negative"),
        ({"optimizer__warmup_steps": -1}, "optimizer.warmup_steps=-1 must not be negative"),
        ({"optimizer__warmup_steps": 21}, "optimizer.warmup_steps=21 is longer than the run, which makes 20 opt"),
        ({"optimizer__decay_steps": -1}, "optimizer.decay_steps=-1 must not be negative"),
        (
            {"optimizer__warmup_steps": 5, "optimizer__decay_steps": 4},
            "optimizer.decay_steps=4 ends before optimizer.warmup_steps=5",
        ),
        ({"loss__clip_eps_low": 1.0}, "loss.clip_eps_low=1.0 must be above 0 and below 1"),
        ({"loss__clip_eps_high": 0.0}, "loss.clip_eps_high=0.0 must be above 0"),
        ({"loss__kl_coef": -0.1}, "loss.kl_coef=-0.1 must not be negative"),
        ({"trainer__max_steps": 0}, "trainer.max_steps=0 must be above 0"),
        ({"trainer__max_sampled_tokens": 0}, "trainer.max_sampled_tokens=0 must be above 0"),
        ({"probe__num_prompts": -1}, "probe.num_prompts=-1 must not be negative"),
        ({"probe__branch_points": 0}, "probe.branch_points=0 must be above 0"),
        ({"trainer__num_prompts_per_step": 0}, "trainer.num_prompts_per_step=0 must be above 0"),
        ({"trainer__num_prompts_per_update": 0}, "trainer.num_prompts_per_update=0 must be above 0"),
        (
            {"trainer__num_prompts_per_update": 5},
            "num_prompts_per_update=5 does not divide trainer.num_prompts_per_step=12; use one of 1, 2, 3, 4, 6, 12",
        ),
        ({"trainer__val_samples_per_prompt": 0}, "trainer.val_samples_per_prompt=0 must be above 0"),
        ({"trainer__val_period": -1}, "trainer.val_period=-1 must not be negative"),
        ({"trainer__export_period": -1}, "trainer.export_period=-1 must not be negative"),
        ({"trainer__val_temperature": 0.0}, "trainer.val_temperature=0.0 must be above 0"),
        ({"seed": -1}, "seed=-1 must not be negative"),
        ({"ib_score__beta": 0.0}, "ib_score.beta=0.0 must be above 0"),
        (
            method("ibtpo.IBTPO", ib_coef=-0.1),
            "method.ib_coef=-0.1: input should be greater than or equal to 0 (Lambda, the weight of the comparison",
        ),
        (method("ibtpo.IBTPO", ib_coef="a"), "method.ib_coef='a': input should be a valid number"),
        (method("grpo.GRPO", ib_coef=0.1), "unknown key 'method.ib_coef': GRPO has zero_variance"),
        (method("ibtpo.IBTPO"), "method.ib_coef is missing (Lambda, the weight of the comparison with the parent.)"),
        (method("ibro.IBRO", entropy_coef=0.0), "method.entropy_coef=0.0: input should be greater than 0"),
        (method("gpro.GPRO"), "method.class=nemo_ibtpo.methods.gpro.GPRO cannot be imported: No module named"),
        (method("grpo.GPRO"), "method.class=nemo_ibtpo.methods.grpo.GPRO cannot be imported: module"),
        (method("grpo.np"), "method.class=nemo_ibtpo.methods.grpo.np is no subclass of nemo_ibtpo.methods.Method"),
        ({"method": {"class": "grpo"}}, "method.class=grpo: give the import path of a class, such as my_package."),
        (
            {**INDEPENDENT, **method("treerl.TreeRL")},
            "method TreeRL compares a step with its parent step, which is the same where nothing branches: "
            "sampler.name=independent never branches",
        ),
        ({**INDEPENDENT, **method("treepo.TreePO")}, "TreePO compares trajectories within each subtree"),
        ({**INDEPENDENT, **method("spo.SPO")}, "SPO compares a step with its parent step"),
        (
            method("spo.SPO"),
            "loss.token_weight=trajectories: method SPO trains each edge of the tree once; set it to unique",
        ),
        (
            {"loss__token_weight": "unique", "loss__normalization": "sequence_mean"},
            "loss.token_weight=unique takes the mean over unique tokens; loss.normalization=sequence_mean",
        ),
        ({"loss__entropy_coef": -0.1}, "loss.entropy_coef=-0.1 must not be negative"),
        ({"loss__tis_cap": 0.5}, "loss.tis_cap=0.5 must be at least 1, or 0"),
        ({"loss__max_token_mult_prob_error": 1.0}, "loss.max_token_mult_prob_error=1.0 must be above 1"),
        ({"sampler__segment_tokens": 0}, "sampler.segment_tokens=0 must be above 0"),
        (
            {"sampler__name": "fixed_width"},
            "sampler.segment_tokens=null: sampler.name=fixed_width branches at the end",
        ),
        (
            {"sampler__name": "full", "sampler__rounds": 3, "sampler__segment_tokens": 1024},
            "branches after 2 segments of sampler.segment_tokens=1024 and needs sampler.min_new_tokens=16 more: 2064 "
            "tokens, but rollout.max_new_tokens=2048",
        ),
        (
            {
                "sampler__name": "full",
                "sampler__rounds": 3,
                "sampler__segment_tokens": 10,
                "sampler__branch_points": 2,
            },
            "sampler.branch_points=2 has no meaning for sampler.name=full",
        ),
        (
            {**INDEPENDENT, "sampler__branch_root": False},
            "sampler.branch_root=false has no meaning for sampler.name=independent",
        ),
        ({"sampler__name": "entropy"}, "sampler.branch_points=1 is no multiple of sampler.initial_rollouts=4"),
        ({"sampler__initial_rollouts": 0}, "sampler.initial_rollouts=0 must be above 0"),
        ({"sampler__rounds": 0}, "sampler.rounds=0 must be above 0"),
        ({"sampler__branch_points": 0}, "sampler.branch_points=0 must be above 0"),
        ({"sampler__rollouts_per_branch": 0}, "sampler.rollouts_per_branch=0 must be above 0"),
        ({"sampler__max_trees_in_flight": 0}, "sampler.max_trees_in_flight=0 must be above 0"),
        (
            {"sampler__max_sequences_per_tree": 0},
            "sampler.max_sequences_per_tree=0 must lie between 1 and the 12 trajectories of a tree",
        ),
        ({"sampler__max_sequences_per_tree": 13}, "sampler.max_sequences_per_tree=13 must lie between 1 and the 12"),
        (
            {"sampler__max_sequences_per_tree": 4, "sampler__branch_points": 2},
            "sampler.branch_points=2 with sampler.max_sequences_per_tree=4: branches are chosen one by one",
        ),
        (
            {"sampler__max_sequences_per_tree": 4, "sampler__name": "independent", "sampler__rounds": 1},
            "sampler.max_sequences_per_tree=4 has no meaning for sampler.name=independent",
        ),
        ({"sampler__name": "independent"}, "sampler.rounds=9 has no meaning for sampler.name=independent"),
        ({"sampler__initial_rollouts": 1, "sampler__rounds": 1}, "the sampler grows one trajectory a prompt"),
        (
            {"sampler__min_new_tokens": 0},
            "sampler.min_new_tokens=0 must lie between 1 and rollout.max_new_tokens=2048",
        ),
        ({"sampler__min_new_tokens": 2049}, "sampler.min_new_tokens=2049 must lie between 1 and"),
        ({"rollout__max_new_tokens": 0}, "rollout.max_new_tokens=0 must be above 0"),
        ({"rollout__temperature": 0.0}, "rollout.temperature=0.0 must be above 0"),
        ({"rollout__top_p": 0.0}, "rollout.top_p=0.0 must be above 0 and at most 1"),
        ({"rollout__top_k": -1}, "rollout.top_k=-1 must not be negative"),
        ({"rollout__top_p": 0.95}, "correct in part, with rollout.allow_truncated_sampling=true"),
        ({"rollout__top_k": 20}, "rollout.top_p=1.0 with rollout.top_k=20 truncates the distribution"),
        ({"rollout__stop": ["x", ""]}, "rollout.stop holds an empty text"),
        ({"rollout__max_batch_size": 0}, "rollout.max_batch_size=0 must be above 0"),
        (
            {"rollout__engine": "transformers", "rollout__transformers__cache_tokens": 199679},
            "rollout.transformers.cache_tokens=199679 is too small: rollout.max_batch_size=64 sequences of 3072",
        ),
        (
            {"actor__max_tokens_per_microbatch": 3071},
            "actor.max_tokens_per_microbatch=3071 cannot hold one trajectory",
        ),
        ({"actor__logprob_chunk_tokens": 0}, "actor.logprob_chunk_tokens=0 must be above 0"),
        ({"reward__num_workers": 0}, "reward.num_workers=0 must be above 0"),
        ({"reward__timeout_s": 0.0}, "reward.timeout_s=0.0 must be above 0"),
        ({"data__train__size": 0}, "data.train.size=0 must be above 0"),
        ({"data__train__size": None}, "data.train.size=null: reasoning_gym makes problems without end"),
        ({"data__train__path": ""}, "data.train.path is empty"),
        ({"data__train__source": "jsonl"}, "data.train.verifier=reasoning_gym checks only problems of source=reason"),
        (
            {
                "data__validation__source": "jsonl",
                "data__validation__verifier": "math",
                "data__validation__options": {"a": 1},
            },
            "data.validation.options are arguments of a reasoning_gym task; source=jsonl takes none",
        ),
        ({"data__validation__seed": 9000}, "data.validation.seed=9000 repeats problems of data.train.seed=1"),
        ({"data__prompt_format": "Solve:"}, "data.prompt_format holds {question} 0 times"),
        ({"data__prompt_format": "{question}{question}"}, "data.prompt_format holds {question} 2 times"),
        (
            {"data__template": "plain", "data__system_prompt": "x"},
            "data.system_prompt is not used by data.template=pl",
        ),
        ({"data__max_prompt_tokens": 0}, "data.max_prompt_tokens=0 must be above 0"),
        ({"actor__tensor_model_parallel_size": 0}, "actor.tensor_model_parallel_size=0 must be above 0"),
        ({"actor__pipeline_model_parallel_size": 0}, "actor.pipeline_model_parallel_size=0 must be above 0"),
        ({"actor__expert_model_parallel_size": 0}, "actor.expert_model_parallel_size=0 must be above 0"),
        (
            {"actor__expert_model_parallel_size": 4},
            "on 8 (actor.tensor_model_parallel_size=2 x actor.pipeline_model_parallel_size=2 with "
            "actor.expert_model_parallel_size=4)",
        ),
        ({"actor__expert_model_parallel_size": 2}, "shares experts, but the model has none; set it to 1"),
        ({"actor__moe_aux_loss_coef": None}, "actor.moe_aux_loss_coef=null balances experts, but the model has none"),
        ({"actor__tensor_model_parallel_size": 1}, "actor.sequence_parallel=true shards over tensor-parallel ranks"),
        ({"actor__tensor_model_parallel_size": 4}, "4 ranks cannot hold copies of a model on 8"),
        ({"actor__pipeline_model_parallel_size": 3}, "start 6, 12, 18, ... (torchrun --nproc-per-node 6)"),
        (
            {"actor__virtual_pipeline_model_parallel_size": 1},
            "virtual_pipeline_model_parallel_size=1 with actor.pipeline_model_parallel_size=2 interleaves nothing",
        ),
        (
            {"actor__virtual_pipeline_model_parallel_size": 2, "actor__pipeline_model_parallel_size": 1},
            "virtual_pipeline_model_parallel_size=2 with actor.pipeline_model_parallel_size=1 interleaves nothing",
        ),
        ({"rollout__vllm__kv_cache_gib": 0.0}, "rollout.vllm.kv_cache_gib=0.0 must be above 0"),
        ({"rollout__vllm__hang_timeout_s": 0.0}, "rollout.vllm.hang_timeout_s=0.0 must be above 0"),
        ({"rollout__vllm__max_restarts": -1}, "rollout.vllm.max_restarts=-1 must not be negative"),
        ({"rollout__vllm__gpu_memory_utilization": 1.5}, "gpu_memory_utilization=1.5 must be above 0 and at most 1"),
        ({"rollout__num_replicas": 0}, "rollout.num_replicas=0 must be above 0"),
        (
            {"rollout__num_replicas": 5},
            "rollout.num_replicas=5 x rollout.tensor_parallel_size=1 needs 5 ranks, but there are 4; use at most 4",
        ),
        (
            {"rollout__engine": "vllm", "rollout__tensor_parallel_size": 3},
            "rollout.tensor_parallel_size=3 does not divide 4 ranks into engines; use one of 1, 2, 4",
        ),
        (
            {"rollout__engine": "vllm", "rollout__tensor_parallel_size": 3, "rollout__num_replicas": 1},
            "rollout.tensor_parallel_size=3 does not divide the model's 4 attention heads; use one of 1, 2, 4",
        ),
        (
            {"rollout__engine": "transformers", "rollout__tensor_parallel_size": 2},
            "rollout.tensor_parallel_size=2: rollout.engine=transformers keeps the whole model on one device",
        ),
        (
            {"actor__virtual_pipeline_model_parallel_size": 3},
            "=3 does not divide the 2 layers of a pipeline stage; use a divisor above 1, or null",
        ),
        ({"model__path": "nowhere"}, "model.path=nowhere: there is no such directory"),
        ({"output_dir": "/dev/null/runs"}, "output_dir=/dev/null/runs: cannot write to /dev/null: Not a directory"),
        ({"checkpoint__save_period": -1}, "checkpoint.save_period=-1 must not be negative"),
        ({"checkpoint__keep_last": 0}, "checkpoint.keep_last=0 must be above 0"),
        ({"logger__wandb__enabled": True, "logger__wandb__project": ""}, "logger.wandb.project is empty"),
        ({"logger__trees__period": -1}, "logger.trees.period=-1 must not be negative"),
        ({"logger__trees__trees_per_step": 0}, "logger.trees.trees_per_step=0 must be above 0"),
        ({"logger__trees__max_gib": 0.0}, "logger.trees.max_gib=0.0 must be above 0"),
        ({"checkpoint__keep_best": -1}, "checkpoint.keep_best=-1 must not be negative"),
        ({"checkpoint__resume": "yes"}, "checkpoint.resume=yes is neither auto nor never"),
        ({"trainer__max_time": "2h"}, "trainer.max_time='2h': write it as DD:HH:MM:SS or HH:MM:SS"),
        ({"trainer__max_time": "01:75:00"}, "trainer.max_time='01:75:00': write it as"),
        ({"trainer__max_time": "00:00:00"}, "trainer.max_time in seconds=0 must be above 0"),
    ],
)
def test_contradictions(config: RunConfig, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        validate(changed(config, **changes), 4)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("sampler", ["ib", "random", "independent", "entropy", "fixed_width", "full"])
@pytest.mark.parametrize("name", ["ibtpo", "grpo", "ibro", "treerl", "treepo", "spo"])
def test_any_sampler_goes_with_any_method_that_makes_sense(config: RunConfig, sampler: str, name: str) -> None:
    """As the shipped files have them, all samplers at the trajectories of the paper."""
    words = [f"model.path={config.model.path}", f"output_dir={config.output_dir}", "data=reasoning_gym"]
    words += [f"sampler={sampler}", f"method={name}", "data.train.path=chain_sum", "name=any"]
    composed = compose(str(conf_dir() / "config.yaml"), words)
    assert composed.sampler.trajectories_per_prompt == 12
    if sampler == "independent" and name in ("treerl", "treepo", "spo"):
        with pytest.raises(UserError, match="never branches; choose another sampler, or method=grpo"):
            validate(composed, 1)
    else:
        validate(composed, 1)


def test_time_is_read() -> None:
    assert max_seconds(None) is None
    assert max_seconds("03:45:00") == 3 * 3600 + 45 * 60
    assert max_seconds("1:00:00:10") == 86410


def test_values_at_the_border_are_allowed(config: RunConfig) -> None:
    validate(changed(config, optimizer__warmup_steps=20, optimizer__min_lr=1e-6, loss__kl_coef=0.0), 4)
    validate(changed(config, rollout__engine="transformers", rollout__transformers__cache_tokens=65 * 3072), 4)
    validate(
        changed(config, rollout__engine="vllm", rollout__transformers__cache_tokens=1), 4
    )  # vLLM reads no such key
    validate(changed(config, actor__max_tokens_per_microbatch=3072), 4)
    validate(changed(config, rollout__engine="vllm", rollout__num_replicas=2, rollout__tensor_parallel_size=2), 4)
    validate(changed(config, rollout__top_p=0.95, rollout__allow_truncated_sampling=True), 4)
    validate(changed(config, data__validation__seed=10001), 4)
    validate(changed(config, actor__virtual_pipeline_model_parallel_size=2), 4)
    validate(changed(config, data__validation__seed=9000, data__validation__options={"min_terms": 9}), 4)


@pytest.mark.parametrize(
    ("replicas", "tensor", "world_size", "ranks"),
    [
        (None, 1, 4, (0, 1, 2, 3)),
        (None, 2, 8, (0, 2, 4, 6)),
        (1, 1, 4, (0,)),
        (2, 1, 8, (0, 4)),
        (3, 2, 16, (0, 4, 8)),
        (2, 2, 5, (0, 2)),
    ],
)
def test_engines_lie_evenly_over_the_ranks(
    config: RunConfig, replicas: int | None, tensor: int, world_size: int, ranks: tuple[int, ...]
) -> None:
    changes = {"rollout__num_replicas": replicas, "rollout__tensor_parallel_size": tensor}
    assert engine_ranks(changed(config, **changes), world_size) == ranks


@pytest.mark.parametrize(
    ("tensor", "pipeline", "model", "message"),
    [
        (
            2,
            1,
            {"num_attention_heads": 9, "num_key_value_heads": 3},
            "9 attention heads and 3 key/value heads; use one of 1, 3",
        ),
        (4, 1, {}, "=4 does not divide the model's 2 key/value heads; use one of 1, 2"),
        (2, 1, {"intermediate_size": 47}, "=2 does not divide the model's 47 MLP channels; use one of 1"),
        (1, 3, {}, "actor.pipeline_model_parallel_size=3 does not divide the model's 4 layers; use one of 1, 2, 4"),
        (1, 8, {}, "actor.pipeline_model_parallel_size=8 does not divide the model's 4 layers"),
        (1, 1, {"max_position_embeddings": 3071}, "= 3072 tokens, but the model has 3071 positions"),
    ],
)
def test_the_model_does_not_fit(
    config: RunConfig, tensor: int, pipeline: int, model: dict[str, int], message: str
) -> None:
    layout = changed(config, actor__tensor_model_parallel_size=tensor, actor__pipeline_model_parallel_size=pipeline)
    with pytest.raises(UserError) as caught:
        check_model(layout, HF_CONFIG | {"num_experts": None} | model)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"actor__expert_model_parallel_size": 4},
            "actor.expert_model_parallel_size=4 does not divide the model's 6 experts; use one of 1, 2, 3, 6",
        ),
        (
            {"actor__sequence_parallel": False},
            "actor.tensor_model_parallel_size=2 with experts needs actor.sequence_parallel=true",
        ),
        ({"actor__moe_aux_loss_coef": -0.1}, "actor.moe_aux_loss_coef=-0.1 must not be negative"),
    ],
)
def test_experts_do_not_fit(config: RunConfig, changes: dict[str, Any], message: str) -> None:
    # An MLP of 47 channels is no hindrance: a model with experts has none beside them.
    model = HF_CONFIG | {"num_experts": 6, "intermediate_size": 47}
    fits = changed(config, actor__expert_model_parallel_size=3, actor__moe_aux_loss_coef=None)
    check_model(fits, model)
    with pytest.raises(UserError) as caught:
        check_model(changed(config, **changes), model)
    assert message in str(caught.value)


def test_one_rank_for_a_model_on_four(config: RunConfig) -> None:
    with pytest.raises(
        UserError, match=r"1 rank cannot hold .* start 4, 8, 12, \.\.\. \(torchrun --nproc-per-node 4\)"
    ):
        validate(config, 1)


def test_a_file_system_that_takes_no_files() -> None:
    with pytest.raises(UserError, match="output_dir=/proc/runs: cannot write to /proc"):
        check_output_dir("/proc/runs")
