"""From a run's configuration to an engine."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.rope import at_length
from nemo_ibtpo.config.schema import RolloutConfig
from nemo_ibtpo.rollout.elsewhere import EngineElsewhere
from nemo_ibtpo.rollout.embedded.engine import TransformersEngine
from nemo_ibtpo.rollout.engine import RolloutEngine, SamplingParams
from nemo_ibtpo.rollout.vllm.engine import VLLMEngine


def make_engine(
    config: RolloutConfig,
    model_path: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    here: bool,
    dtype: torch.dtype,
    device: torch.device | str,
    max_model_len: int,
    output_dir: Path,
    for_training: bool,
) -> RolloutEngine:
    """The engine that a run asks for, with the weights found at ``model_path``.

    Args:
        config: sampling parameters and sizes.
        model_path: directory with a Hugging Face model.
        tokenizer: the model's.
        here: whether this rank owns an engine; one that does not gets a stand-in.
        dtype: of the engine's weights and of its keys and values.
        device: where it runs.
        max_model_len: most tokens of a sequence, its prefix included.
        output_dir: the run's; an engine in a process of its own writes its log there.
        for_training: what is sampled is trained on, so that rollouts must say what their tokens were drawn from.

    Raises:
        UserError: the model cannot be read, the sizes do not fit each other, or the engine is not installed.
    """
    sampling = make_sampling_params(config, find_eos_token_ids(model_path, tokenizer))
    if not here:
        return EngineElsewhere(sampling)
    if config.engine == "vllm":
        return VLLMEngine(
            Path(model_path),
            config,
            sampling=sampling,
            dtype=dtype,
            device=torch.device(device),
            max_model_len=max_model_len,
            log_path=output_dir / "vllm" / f"rank_{os.environ.get('RANK', '0')}.log",
            return_kept=for_training,
        )
    return TransformersEngine(
        load_model(model_path, dtype=dtype, device=device, max_model_len=max_model_len),
        tokenizer,
        sampling=sampling,
        max_batch_size=config.max_batch_size,
        cache_tokens=config.transformers.cache_tokens,
        max_model_len=max_model_len,
    )


def make_sampling_params(config: RolloutConfig, eos_token_ids: tuple[int, ...]) -> SamplingParams:
    """How a run samples its training rollouts."""
    return SamplingParams(
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        stop=tuple(config.stop),
        eos_token_ids=eos_token_ids,
        repetition_penalty=config.repetition_penalty,
    )


def find_eos_token_ids(model_path: str | Path, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Tokens that end a response: the tokenizer's and those of ``generation_config.json``, which chat models use
    for the end of a turn.

    Raises:
        UserError: there is none, so that no response would ever end by itself.
    """
    eos: set[int] = set() if tokenizer.eos_token_id is None else {tokenizer.eos_token_id}
    if (Path(model_path) / "generation_config.json").is_file():
        from_model = GenerationConfig.from_pretrained(model_path).eos_token_id
        eos.update([from_model] if isinstance(from_model, int) else from_model or [])
    if not eos:
        raise UserError(
            f"{model_path}: neither the tokenizer nor generation_config.json names an end-of-sequence token;"
            " set eos_token in tokenizer_config.json"
        )
    return tuple(sorted(eos))


def load_model(
    model_path: str | Path, *, dtype: torch.dtype, device: torch.device | str, max_model_len: int
) -> PreTrainedModel:
    """A Hugging Face causal language model, every weight of it found in safetensors files.

    It rotates every sequence as one of ``max_model_len`` tokens (:mod:`nemo_ibtpo.config.rope`).

    Raises:
        UserError: the directory is missing or damaged, or a weight is absent, superfluous or of another shape.
    """
    if not (Path(model_path) / "config.json").is_file():
        raise UserError(f"{model_path} is not a directory with a Hugging Face model: it holds no config.json")
    try:
        config = AutoConfig.from_pretrained(model_path, local_files_only=True)
        config.update(at_length(config.to_dict(), max_model_len))
        model, report = AutoModelForCausalLM.from_pretrained(
            model_path,
            config=config,
            dtype=dtype,
            use_safetensors=True,  # never a pickle
            local_files_only=True,
            ignore_mismatched_sizes=True,  # reported below, by name
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{model_path} holds no readable model: {reason}") from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if keys := sorted(map(str, report[problem])):
            raise UserError(f"{model_path}: {problem.replace('_keys', '')} weights: {', '.join(keys[:5])}")
    return model.to(device)
