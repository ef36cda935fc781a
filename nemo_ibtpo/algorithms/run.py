"""A run from its configuration: builds the parts, trains, and leaves the model as a Hugging Face directory."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from nemo_ibtpo.algorithms.ibtpo import IBTPOTrainer
from nemo_ibtpo.config.loader import to_yaml
from nemo_ibtpo.config.schema import RunConfig
from nemo_ibtpo.data.loader import PromptLoader
from nemo_ibtpo.data.loading import load_problems
from nemo_ibtpo.megatron import parallel
from nemo_ibtpo.megatron.actor import MegatronActor
from nemo_ibtpo.megatron.architecture import load_architecture
from nemo_ibtpo.megatron.safetensors_io import SafetensorsDirectory, write_model
from nemo_ibtpo.reporting.metrics import MetricsWriter
from nemo_ibtpo.reporting.progress import RunConsole
from nemo_ibtpo.rewards.pool import VerifierPool
from nemo_ibtpo.rollout.factory import make_engine
from nemo_ibtpo.tree.branching import make_strategy
from nemo_ibtpo.tree.steps import StepSplitter

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def run_training(config: RunConfig) -> None:
    """Train as configured, on this rank; the configuration has been validated.

    Below ``output_dir`` it writes ``config.yaml``, ``metrics.jsonl``, ``tensorboard/``,
    ``validation/`` and the trained model in ``hf/``.

    Raises:
        UserError: something the user can mend, found before or during the run.
    """
    context = parallel.initialize(config.actor, config.seed)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    console = RunConsole(rank)
    transformers_logging.disable_progress_bar()  # every rank would draw its own
    output = Path(config.output_dir)
    model_path = Path(config.model.path)

    tokenizer = AutoTokenizer.from_pretrained(str(model_path), local_files_only=True)
    train_problems, train_report = load_problems(config.data.train, config.data, tokenizer)
    validation, validation_report = load_problems(config.data.validation, config.data, tokenizer)
    console.say(f"training data: {train_report.summary()}")
    console.say(f"validation data: {validation_report.summary()}")

    architecture = load_architecture(model_path)
    trainer = config.trainer
    actor = MegatronActor(
        architecture,
        SafetensorsDirectory(model_path),
        actor=config.actor,
        optimizer=config.optimizer,
        total_updates=trainer.max_steps * trainer.num_prompts_per_step // trainer.num_prompts_per_update,
        dtype=_DTYPES[config.model.dtype],
        temperature=config.rollout.temperature,
        keep_reference=config.loss.kl_coef > 0,
        context=context,
    )
    engine = make_engine(
        config.rollout,
        model_path,
        tokenizer,
        dtype=_DTYPES[config.model.dtype],
        device=context.device,
        max_model_len=config.data.max_prompt_tokens + config.rollout.max_new_tokens,
    )
    rewards = VerifierPool(tokenizer, config.reward)
    writer = None
    if rank == 0:
        (output / "validation").mkdir(parents=True, exist_ok=True)
        (output / "config.yaml").write_text(to_yaml(config))
        writer = MetricsWriter(output, tensorboard=config.logger.tensorboard)

    def export(name: str) -> None:
        write_model(output / name, actor.named_weights(), like=model_path, write=rank == 0)
        console.say(f"model written to {output / name}")

    try:
        IBTPOTrainer(
            config=config,
            rank=rank,
            world_size=world_size,
            actor=actor,
            engine=engine,
            sampling=engine.sampling,
            strategy=make_strategy(config.sampler, config.ib_score, config.rollout.max_new_tokens),
            splitter=StepSplitter(tokenizer),
            rewards=rewards,
            prompts=PromptLoader(train_problems, config.data.shuffle, config.seed),
            validation=validation,
            writer=writer,
            console=console,
            export=export,
        ).fit()
    finally:
        rewards.close()
        engine.close()
        if writer is not None:
            writer.close()
    parallel.shutdown()
