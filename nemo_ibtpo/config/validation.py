"""Values that contradict each other, the model or the machine are refused before any work is done.

Every check is one line here and one line for the user: the key, its value, and what would be right. Needs no
torch; the same on every rank.
"""

from __future__ import annotations

import os
import re
import tempfile
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Literal

from nemo_ibtpo.config.carry_over import check_carry_over
from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.layout import check_model, check_positions, check_world_size, trajectory_tokens
from nemo_ibtpo.config.mixtures import training_parts, validation_parts
from nemo_ibtpo.config.model_directory import read_model_directory
from nemo_ibtpo.config.refusals import divisors, refuse_if
from nemo_ibtpo.config.rewards import check_reward
from nemo_ibtpo.config.schema import (
    ActorConfig,
    BenchmarkConfig,
    DataConfig,
    DatasetConfig,
    EvalConfig,
    RolloutConfig,
    RunConfig,
    SamplerConfig,
)
from nemo_ibtpo.methods import make_method

Scope = Literal["train", "sample", "gradients", "study", "plan"]


def validate(config: RunConfig | EvalConfig, scope: Scope | Literal["eval"], world_size: int = 1) -> None:
    """Check a configuration for what is to be done with it.

    Args:
        config: an ``EvalConfig`` for ``eval``, else a ``RunConfig``.
        scope: ``train`` checks everything; ``study`` all but the model, which may have to be made first; ``plan`` the
            values alone, since neither model nor machine need be there; ``sample`` what comes into play without
            training, ``gradients`` the method as well.
        world_size: ranks of the run.

    Raises:
        UserError: for the first thing that is wrong.
    """
    check_reward(config.reward)
    if isinstance(config, EvalConfig):
        _check_evaluation(config)
        return
    if scope not in ("sample", "gradients"):
        _check_optimization(config)
        _check_checkpoints(config)
        _check_probe(config)
        check_carry_over(config)
    if scope != "sample":
        _check_method(config)
    _check_sampling(config)
    _check_data(config)
    if scope in ("train", "study"):
        _check_logger(config)
        _check_timeouts(config)
        _check_overlap(config.actor)
        check_world_size(config, world_size)
    if scope in ("train", "sample", "gradients"):
        if config.model.provider == "bridge":
            check_bridge("model.provider=bridge")
        check_model(config, read_model_directory(config.model.path, config.model.provider))
    if scope != "plan":
        check_output_dir(config.output_dir)


def check_bridge(asked: str) -> None:
    """Whether megatron-bridge can be there; evaluations do not need it, since no actor is built.

    Args:
        asked: the setting or option that asks for it.
    """
    absent = [
        package
        for package, module in (("megatron-bridge", "megatron.bridge"), ("transformer-engine", "transformer_engine"))
        if find_spec(module) is None
    ]
    refuse_if(
        bool(absent),
        f"{asked} needs {' and '.join(absent)}, not installed here: pip install --no-deps "
        "megatron-bridge, and transformer-engine[pytorch], which wants CUDA (docs/models.md)",
    )


def _check_evaluation(config: EvalConfig) -> None:
    """The benchmark, the engine, the model, the output directory."""
    benchmark, rollout = config.benchmark, config.rollout
    refuse_if(
        not re.fullmatch(r"[\w.-]*\w[\w.-]*", benchmark.name),
        f"benchmark.name={benchmark.name}: it names a directory; use letters, digits, _, - and .",
    )
    _check_dataset("benchmark.data", benchmark.data)
    needed = {"choice": "choice", "instructions": "ifeval"}.get(benchmark.kind)
    verifier = benchmark.data.verifier
    refuse_if(
        needed is not None and verifier != needed,
        f"benchmark.data.verifier={verifier} with benchmark.kind={benchmark.kind}: use {needed}",
    )
    refuse_if(
        benchmark.kind == "open" and verifier in ("choice", "ifeval"),
        f"benchmark.data.verifier={verifier} with benchmark.kind=open: use math, exact or reasoning_gym",
    )
    refuse_if(
        (benchmark.kind == "choice") != bool(benchmark.choice_keys),
        f"benchmark.choice_keys={benchmark.choice_keys} with benchmark.kind={benchmark.kind}: the options' columns "
        "go with kind=choice and with no other",
    )
    refuse_if(
        benchmark.kind == "choice" and not 2 <= len(benchmark.choice_keys) <= 26,
        f"benchmark.choice_keys has {len(benchmark.choice_keys)} columns; a choice has 2 to 26",
    )
    _check_prompts("benchmark", benchmark)
    refuse_if(
        rollout.engine == "transformers" and rollout.tensor_parallel_size != 1,
        f"rollout.tensor_parallel_size={rollout.tensor_parallel_size}: the transformers engine runs on one device; "
        "use rollout=vllm",
    )
    longest = benchmark.max_prompt_tokens + rollout.max_new_tokens
    _check_cache(rollout, longest)
    directory = Path(config.model.path)
    refuse_if(
        any((directory / name).is_file() for name in (".metadata", "megatron/.metadata")),
        f"model.path={directory} is a Megatron checkpoint, which a dry run does not convert; give a Hugging "
        "Face model (nemo-ibtpo convert megatron-to-hf), or start without --dry-run",
    )
    model = read_model_directory(config.model.path, config.model.provider)
    check_positions("benchmark.max_prompt_tokens", longest, model)
    check_output_dir(config.output_dir)


def _check_cache(rollout: RolloutConfig, longest: int) -> None:
    cache, batch = rollout.transformers.cache_tokens, rollout.max_batch_size
    refuse_if(
        rollout.engine == "transformers" and cache < (batch + 1) * longest,
        f"rollout.transformers.cache_tokens={cache} is too small: rollout.max_batch_size={batch} sequences of "
        f"{longest} tokens and one to spare for shared prefixes need {(batch + 1) * longest}",
    )


def _check_optimization(config: RunConfig) -> None:
    """Constants of the loss, the optimizer and the loop."""
    optimizer, loss, trainer = config.optimizer, config.loss, config.trainer
    refuse_if(
        optimizer.min_lr > optimizer.lr,
        f"optimizer.min_lr={optimizer.min_lr} is above optimizer.lr={optimizer.lr}; the decay goes down",
    )

    cap, limit = loss.tis_cap, loss.max_token_mult_prob_error
    refuse_if(cap != 0 and cap < 1, f"loss.tis_cap={cap} must be at least 1, or 0 for no importance weights")
    refuse_if(
        limit != 0 and limit <= 1,
        f"loss.max_token_mult_prob_error={limit} must be above 1, which is no error at all, or 0 for no limit",
    )

    per_step, per_update = trainer.num_prompts_per_step, trainer.num_prompts_per_update
    refuse_if(
        per_step % per_update != 0,
        f"trainer.num_prompts_per_update={per_update} does not divide trainer.num_prompts_per_step="
        f"{per_step}; use one of {divisors(per_step)}",
    )
    updates = trainer.max_steps * per_step // per_update
    refuse_if(
        optimizer.warmup_steps > updates,
        f"optimizer.warmup_steps={optimizer.warmup_steps} is longer than the run, which makes {updates} "
        "optimizer steps",
    )
    refuse_if(
        0 < optimizer.decay_steps < optimizer.warmup_steps,
        f"optimizer.decay_steps={optimizer.decay_steps} ends before optimizer.warmup_steps="
        f"{optimizer.warmup_steps}; it counts from the start of the run",
    )


def _check_checkpoints(config: RunConfig) -> None:
    """What is saved, and how long the run may take."""
    checkpoint = config.checkpoint
    if checkpoint.resume not in ("auto", "never"):
        refuse_if(
            not (Path(checkpoint.resume) / "manifest.json").is_file(),
            f"checkpoint.resume={checkpoint.resume} is neither auto nor never, and there is no checkpoint of that "
            "path (a directory with manifest.json, such as <output_dir>/checkpoints/latest)",
        )
    max_seconds(config.trainer.max_time)


def _check_logger(config: RunConfig) -> None:
    """What is kept for people."""
    logger = config.logger
    for name, where, value in (
        ("wandb", "project", logger.wandb.project),
        ("mlflow", "experiment", logger.mlflow.experiment),
    ):
        if getattr(logger, name).enabled:
            refuse_if(not value, f"logger.{name}.{where} is empty; name one")
            refuse_if(
                find_spec(name) is None,
                f"logger.{name}.enabled=true, but {name} is not installed: pip install 'nemo-ibtpo[{name}]'",
            )


def _check_method(config: RunConfig) -> None:
    """What is learned from trees, against how they are sampled and how the loss weighs them."""
    loss = config.loss
    make_method(config.method).check(config.sampler, loss)
    refuse_if(
        loss.token_weight != "trajectories" and loss.normalization != "token_mean",
        f"loss.token_weight={loss.token_weight} is a weight of tokens; loss.normalization={loss.normalization} is a "
        "mean over trajectories: set it to token_mean",
    )
    refuse_if(
        loss.denominator == "constant" and loss.normalization != "token_mean",
        f"loss.denominator=constant counts tokens; loss.normalization={loss.normalization} is a mean over "
        "trajectories: set it to token_mean",
    )
    refuse_if(
        loss.token_weight == "hierarchical" and config.ib_score.value_estimator != "children_mean",
        "loss.token_weight=hierarchical weighs draws alike below each step, and so must the value of a step: set "
        "ib_score.value_estimator=children_mean",
    )


def _check_sampling(config: RunConfig) -> None:
    """The growth of trees, and the engine that samples them."""
    sampler, rollout = config.sampler, config.rollout
    refuse_if(
        sampler.name == "independent" and sampler.rounds != 1,
        f"sampler.rounds={sampler.rounds} has no meaning for sampler.name=independent, which never branches; "
        "set it to 1",
    )
    refuse_if(
        sampler.trajectories_per_prompt < 2,
        "the sampler grows one trajectory a prompt; a method compares at least 2: raise "
        "sampler.initial_rollouts or sampler.rounds",
    )
    refuse_if(
        not 1 <= sampler.min_new_tokens <= rollout.max_new_tokens,
        f"sampler.min_new_tokens={sampler.min_new_tokens} must lie between 1 and rollout.max_new_tokens="
        f"{rollout.max_new_tokens}",
    )
    _check_shape(sampler, rollout.max_new_tokens)
    refuse_if(
        rollout.repetition_penalty != 1,
        f"rollout.repetition_penalty={rollout.repetition_penalty} draws trees from another distribution than that of "
        "the policy that is trained; set it to 1 (nemo-ibtpo eval takes others)",
    )
    refuse_if(
        rollout.engine == "vllm" and rollout.top_p < 1 and rollout.top_k == 0,
        f"rollout.top_p={rollout.top_p} with rollout.top_k=0: training needs the tokens that were kept, and vLLM "
        "returns a bounded number of them; set rollout.top_k (20 goes with the paper's 0.95) or rollout=transformers",
    )


def _check_overlap(actor: ActorConfig) -> None:
    """What data-parallel ranks exchange while they compute: gradients and weights, in the same buckets."""
    refuse_if(
        actor.grad_bucket_size is not None and actor.overlap_grad_reduce is False,
        f"actor.grad_bucket_size={actor.grad_bucket_size} has no meaning for actor.overlap_grad_reduce=false; set "
        "that to true, or the size to null",
    )
    refuse_if(
        actor.overlap_param_gather is True and not actor.use_distributed_optimizer,
        "actor.overlap_param_gather=true has no meaning for actor.use_distributed_optimizer=false, with which every "
        "rank updates all of its weights; set it to null or false",
    )
    refuse_if(
        actor.overlap_param_gather is True and actor.overlap_grad_reduce is not True,
        "actor.overlap_param_gather=true gathers weights in the buckets of actor.overlap_grad_reduce; set that to "
        "true, too",
    )


def _check_timeouts(config: RunConfig) -> None:
    """Ranks that wait for the start of an engine outlive it, so that its owner can say why it failed."""
    vllm, waited = config.rollout.vllm, config.actor.collective_timeout_s
    longest = (vllm.max_restarts + 1) * vllm.start_timeout_s
    refuse_if(
        config.rollout.engine == "vllm" and waited <= longest,
        f"actor.collective_timeout_s={waited:g} must be above {longest:g}: other ranks wait while an engine "
        f"is started, up to rollout.vllm.max_restarts + 1 = {vllm.max_restarts + 1} times for "
        f"rollout.vllm.start_timeout_s={vllm.start_timeout_s:g}",
    )


def _check_shape(sampler: SamplerConfig, max_new_tokens: int) -> None:
    """What only some samplers ask for."""
    segment = sampler.segment_tokens
    if sampler.name in ("fixed_width", "full"):
        refuse_if(
            segment is None,
            f"sampler.segment_tokens=null: sampler.name={sampler.name} branches at the ends of segments; say how "
            "many tokens they have",
        )
        needed = (sampler.rounds - 1) * (segment or 0) + sampler.min_new_tokens
        refuse_if(
            needed > max_new_tokens,
            f"sampler.rounds={sampler.rounds} branches after {sampler.rounds - 1} segments of sampler.segment_tokens="
            f"{segment} and needs sampler.min_new_tokens={sampler.min_new_tokens} more: {needed} tokens, but "
            f"rollout.max_new_tokens={max_new_tokens}; make segments shorter",
        )
    refuse_if(
        sampler.name == "full" and sampler.branch_points != 1,
        f"sampler.branch_points={sampler.branch_points} has no meaning for sampler.name=full, which branches every "
        "segment of a level; set it to 1",
    )
    if sampler.max_sequences_per_tree is not None:
        _check_window(sampler, sampler.max_sequences_per_tree)
    refuse_if(
        not sampler.branch_root and sampler.name not in ("ib", "random"),
        f"sampler.branch_root=false has no meaning for sampler.name={sampler.name}; set it to true",
    )
    refuse_if(
        sampler.name == "entropy" and sampler.branch_points % sampler.initial_rollouts != 0,
        f"sampler.branch_points={sampler.branch_points} is no multiple of sampler.initial_rollouts="
        f"{sampler.initial_rollouts}: sampler.name=entropy forks equally many tokens of every chain",
    )


def _check_window(sampler: SamplerConfig, window: int) -> None:
    trajectories = sampler.trajectories_per_prompt
    refuse_if(
        sampler.name not in ("ib", "random"),
        f"sampler.max_sequences_per_tree={window} has no meaning for sampler.name={sampler.name}, which grows in "
        "rounds; set it to null",
    )
    refuse_if(
        not 1 <= window <= trajectories,
        f"sampler.max_sequences_per_tree={window} must lie between 1 and the {trajectories} trajectories of a tree; "
        "null grows in rounds",
    )
    for name in ("branch_points", "rollouts_per_branch"):
        refuse_if(
            getattr(sampler, name) != 1,
            f"sampler.{name}={getattr(sampler, name)} with sampler.max_sequences_per_tree={window}: branches are "
            "chosen one by one; set it to 1, or sampler.max_sequences_per_tree to null to grow in rounds",
        )


def _check_probe(config: RunConfig) -> None:
    """The trees that policies are measured with."""
    probe, size = config.probe, config.data.validation.size
    refuse_if(
        size is not None and probe.num_prompts > size,
        f"probe.num_prompts={probe.num_prompts}: there are data.validation.size={size} problems to grow trees for",
    )


def _check_data(config: RunConfig) -> None:
    """Problems, prompts and the buffers that have to hold them."""
    data = config.data
    training, validation = training_parts(data), validation_parts(data)
    for name, dataset in ((part.key, part.dataset) for part in (*training, *validation)):
        _check_dataset(name, dataset)
        refuse_if(
            dataset.verifier in ("choice", "ifeval"),
            f"{name}.verifier={dataset.verifier} judges benchmarks only (nemo-ibtpo eval); use math or exact",
        )
    for own, other in product(training, validation):
        refuse_if(
            _overlap(own.dataset, other.dataset),
            f"{other.key}.seed={other.dataset.seed} repeats problems of {own.key}.seed={own.dataset.seed}: "
            f"problem i is made from seed + i; set the seeds further apart than {own.key}.size",
        )
    _check_prompts("data", data)
    longest = trajectory_tokens(config)
    budget = config.actor.max_tokens_per_microbatch
    refuse_if(
        budget < longest,
        f"actor.max_tokens_per_microbatch={budget} cannot hold one trajectory: "
        f"data.max_prompt_tokens + rollout.max_new_tokens = {longest}",
    )
    _check_cache(config.rollout, longest)


def _check_prompts(name: str, prompts: DataConfig | BenchmarkConfig) -> None:
    count = prompts.prompt_format.count("{question}")
    refuse_if(count != 1, f"{name}.prompt_format holds {{question}} {count} times; it needs it exactly once")
    template = prompts.template
    refuse_if(
        template != "chat" and prompts.system_prompt is not None,
        f"{name}.system_prompt is not used by {name}.template={template}; set it to null, or {name}.template=chat",
    )
    refuse_if(
        template != "chat" and bool(prompts.template_options),
        f"{name}.template_options are of the chat template, which {name}.template={template} does not use",
    )
    refuse_if(
        template == "none" and prompts.prompt_format != "{question}",
        f"{name}.template=none takes texts as they are; set {name}.prompt_format='{{question}}'",
    )


def _check_dataset(name: str, dataset: DatasetConfig) -> None:
    generated = dataset.source == "reasoning_gym"
    if dataset.answer_from not in (None, "boxed", "hashes"):
        try:
            groups = re.compile(dataset.answer_from).groups
        except re.error as error:
            raise UserError(f"{name}.answer_from={dataset.answer_from!r} is no regular expression: {error}") from None
        refuse_if(groups != 1, f"{name}.answer_from={dataset.answer_from!r} needs one group, it has {groups}")
    refuse_if(
        generated and dataset.size is None,
        f"{name}.size=null: reasoning_gym makes problems without end; say how many",
    )
    refuse_if(
        not generated and dataset.verifier == "reasoning_gym",
        f"{name}.verifier=reasoning_gym checks only problems of source=reasoning_gym; use math or exact",
    )
    refuse_if(
        not generated and bool(dataset.options),
        f"{name}.options are arguments of a reasoning_gym task; source={dataset.source} takes none",
    )


def _overlap(train: DatasetConfig, validation: DatasetConfig) -> bool:
    """Whether two generated data sets share problems (reasoning-gym seeds problem i with seed + i)."""
    if train.size is None or validation.size is None or train.source != "reasoning_gym":
        return False
    same = (train.source, train.path, train.options) == (
        validation.source,
        validation.path,
        validation.options,
    )
    start = max(train.seed, validation.seed)
    return same and start < min(train.seed + train.size, validation.seed + validation.size)


def check_output_dir(output_dir: str) -> None:
    """Whether files can be made under ``output_dir``, which need not exist yet; leaves no trace."""
    refuse_if(not output_dir.strip(), "output_dir is empty; name a directory")
    directory = Path(output_dir).absolute()
    existing = next(path for path in (directory, *directory.parents) if os.path.lexists(path))
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise UserError(
            f"output_dir={output_dir}: cannot write to {existing}: {error.strerror}; choose another"
        ) from None


def max_seconds(max_time: str | None) -> float | None:
    """Seconds of ``trainer.max_time``; None has no limit.

    Raises:
        UserError: it is not written as it should be.
    """
    if max_time is None:
        return None
    match = re.fullmatch(r"(?:(\d+):)?(\d+):([0-5]?\d):([0-5]?\d)", max_time)
    refuse_if(
        match is None,
        f"trainer.max_time={max_time!r}: write it as DD:HH:MM:SS or HH:MM:SS, in quotes, such as '03:45:00'",
    )
    assert match is not None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    refuse_if(total == 0, f"trainer.max_time={max_time!r} leaves no time to train; use null for no limit")
    return float(total)
