"""The batch plan: what a configuration amounts to, in words and numbers, before anything runs."""

from __future__ import annotations

from nemo_ibtpo.config.carry_over import trees_in_flight
from nemo_ibtpo.config.layout import engine_ranks, model_parallel_ranks, trajectory_tokens
from nemo_ibtpo.config.schema import RunConfig


def batch_plan(config: RunConfig, world_size: int) -> str:
    """Describe one training step of a validated configuration on ``world_size`` ranks, several lines."""
    actor, sampler, trainer = config.actor, config.sampler, config.trainer
    data_parallel = world_size // model_parallel_ranks(config)
    trees = trainer.num_prompts_per_step
    more = trees_in_flight(config) - trees
    carried = f", {_count(more, 'tree')} more in flight" if more else ""
    per_tree = sampler.trajectories_per_prompt
    updates = trees // trainer.num_prompts_per_update
    prompt, response = config.data.max_prompt_tokens, config.rollout.max_new_tokens
    growth = f"{sampler.initial_rollouts} from the prompt"
    if sampler.name == "full":
        growth += f", {1 + sampler.rollouts_per_branch} from every segment on {sampler.rounds - 1} levels"
    elif sampler.rounds > 1 and sampler.max_sequences_per_tree is not None:
        branches = per_tree - sampler.initial_rollouts
        growth += f" + {_count(branches, 'branch')}, {sampler.max_sequences_per_tree} in flight"
    elif sampler.rounds > 1:
        per_round = sampler.branch_points * sampler.rollouts_per_branch
        growth += f" + {_count(sampler.rounds - 1, 'round')} of {per_round}"
    shared_by = actor.expert_model_parallel_size
    context = f"{actor.context_parallel_size} context x " if actor.context_parallel_size > 1 else ""
    experts = f"; each layer's experts on {shared_by} of them" if shared_by > 1 else ""
    lines = {
        "model": f"{config.model.path} in {config.model.dtype}, written to {config.output_dir}",
        "ranks": (
            f"{_count(world_size, 'rank')} = {actor.tensor_model_parallel_size} tensor x {context}"
            f"{actor.pipeline_model_parallel_size} pipeline x {data_parallel} data parallel{experts}"
        ),
        "engines": (
            f"{_count(len(engine_ranks(config, world_size)), f'{config.rollout.engine} replica')} on "
            f"{_count(config.rollout.tensor_parallel_size, 'rank')} each, {config.rollout.max_batch_size:,} "
            "sequences at once"
        ),
        "step": (
            f"{_count(trees, 'prompt')} -> {_count(trees, 'tree')} ({sampler.name}{carried}) of "
            f"{_count(per_tree, 'trajectory')} ({growth}) = {_count(trees * per_tree, 'trajectory')}, "
            f"method {config.method['class'].rpartition('.')[2]}"
        ),
        "updates": (
            f"{_count(updates, 'optimizer step')} a step, each on {_count(trees // updates, 'tree')} over "
            f"{_count(data_parallel, 'data-parallel rank')}; {trainer.max_steps * updates:,} in the run of "
            f"{_count(trainer.max_steps, 'step')}"
        ),
        "tokens": (
            f"a trajectory has at most {prompt:,} + {response:,} = {trajectory_tokens(config):,}, a tree "
            f"{prompt + per_tree * response:,}, a step {trees * (prompt + per_tree * response):,}; "
            f"a micro-batch {actor.max_tokens_per_microbatch:,}"
        ),
    }
    checkpoint = config.checkpoint
    period, limit, best = checkpoint.save_period, trainer.max_time, checkpoint.keep_best
    periodic = f"every {_count(period, 'step')} and " if period else ""
    lines["saved"] = (
        f"after {periodic}the last step, when stopped"
        f"{f' and after {limit}' if limit else ''}; the newest {checkpoint.keep_last}"
        f"{f' and the {best} of the highest accuracy' if best else ''} are kept; resume: {checkpoint.resume}"
    )
    return "\n".join([f"batch plan of '{config.name}'", *(f"  {name:<9}{text}" for name, text in lines.items())])


def _count(number: int, noun: str) -> str:
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}es" if noun.endswith("h") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"
