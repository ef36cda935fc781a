"""How an evaluation was made, as it is stored with its samples, and what makes two of them comparable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from nemo_ibtpo import __version__
from nemo_ibtpo.config.schema import EvalConfig, RewardConfig
from nemo_ibtpo.data.problems import Problem, problems_digest

# Says where things lie or come from, not what they are: problems and model are distinguished by their digests.
_WHEREABOUTS = ("data", "model_path", "sampling", "version")


def evaluation_settings(config: EvalConfig, problems: Sequence[Problem], model_digest: str) -> dict[str, Any]:
    """Everything that decides the samples, JSON-able.

    The digest of the problems leaves the prompts' tokens out, so that models with different tokenizers can be
    compared.
    """
    benchmark, rollout = config.benchmark, config.rollout
    return {
        "benchmark": benchmark.name,
        "problems": len(problems),
        "problems_digest": problems_digest([replace(problem, prompt_tokens=()) for problem in problems])[:16],
        "template": benchmark.template,
        "template_options": benchmark.template_options,
        "prompt_format": benchmark.prompt_format,
        "system_prompt": benchmark.system_prompt,
        "max_prompt_tokens": benchmark.max_prompt_tokens,
        "samples_per_problem": benchmark.samples_per_problem,
        "max_new_tokens": rollout.max_new_tokens,
        "temperature": rollout.temperature,
        "top_p": rollout.top_p,
        "top_k": rollout.top_k,
        # None where there is none, as for evaluations that were made before there were penalties.
        "repetition_penalty": rollout.repetition_penalty if rollout.repetition_penalty != 1 else None,
        "stop": rollout.stop,
        "seed": config.seed,
        "engine": rollout.engine,
        "dtype": config.model.dtype,
        "verifier_timeout_s": config.reward.timeout_s,
        "reward": _reward(config.reward),
        "model_digest": model_digest,
        "model_path": config.model.path,
        "sampling": config.sampling,
        "data": asdict(benchmark.data),
        "version": __version__,
    }


def _reward(reward: RewardConfig) -> Any:
    """The functions that judge and what they leave out, None if the verifiers alone look at everything."""
    judging = {
        "function": reward.function,
        "options": reward.options,
        "parts": reward.parts,
        "answer_after": reward.answer_after,
    }
    return {name: value for name, value in judging.items() if value} or None


def describe_difference(first: dict[str, Any], second: dict[str, Any], but: Sequence[str] = ()) -> str:
    """The first setting that decides samples and differs, as ``name: a, here b``; empty if there is none."""
    for name in [*second, *(name for name in first if name not in second)]:
        if name not in (*_WHEREABOUTS, *but) and first.get(name) != second.get(name):
            return f"{name}: {first.get(name)!r}, here {second.get(name)!r}"
    return ""
