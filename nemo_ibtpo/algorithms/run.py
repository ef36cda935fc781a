"""A run from its configuration: builds the parts, trains, and leaves the model as a Hugging Face directory."""

from __future__ import annotations

import os
import socket
from collections.abc import Collection
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from nemo_ibtpo.algorithms.checkpointing import Checkpointer, StoppedError
from nemo_ibtpo.algorithms.ibtpo import IBTPOTrainer
from nemo_ibtpo.checkpoints.status import State, write_status
from nemo_ibtpo.checkpoints.stopping import StopRequest
from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.layout import engine_ranks, trajectory_tokens
from nemo_ibtpo.config.loader import to_yaml
from nemo_ibtpo.config.schema import DataConfig, DatasetConfig, RunConfig
from nemo_ibtpo.config.validation import max_seconds
from nemo_ibtpo.data.loader import PromptLoader
from nemo_ibtpo.data.loading import leave_out, load_problems
from nemo_ibtpo.data.problems import Problem, problems_digest
from nemo_ibtpo.inspection.archive import TreeArchive
from nemo_ibtpo.inspection.keeping import TreeKeeper
from nemo_ibtpo.inspection.run_data import write_questions
from nemo_ibtpo.megatron import parallel, random_state
from nemo_ibtpo.megatron.actor import MegatronActor
from nemo_ibtpo.megatron.architecture import load_architecture
from nemo_ibtpo.megatron.collectives import Dealing
from nemo_ibtpo.megatron.safetensors_io import SafetensorsDirectory, write_model
from nemo_ibtpo.methods import make_method
from nemo_ibtpo.reporting.metrics import MetricsWriter
from nemo_ibtpo.reporting.progress import RunConsole
from nemo_ibtpo.reporting.trackers import make_trackers
from nemo_ibtpo.rewards.gold import keep_verifiable
from nemo_ibtpo.rewards.pool import VerifierPool
from nemo_ibtpo.rollout.factory import make_engine
from nemo_ibtpo.rollout.transport.segment import segment_of_host, this_host
from nemo_ibtpo.rollout.vllm.engine import loads_from_host
from nemo_ibtpo.tree.branching import make_strategy
from nemo_ibtpo.tree.steps import make_splitter

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def run_training(config: RunConfig) -> str | None:
    """Train as configured, on this rank; the configuration has been validated.

    Below ``output_dir`` it writes ``config.yaml``, ``metrics.jsonl``, ``tensorboard/``, ``trees/``,
    ``validation/``, ``checkpoints/``, ``status.json`` and the trained model in ``hf/``.

    Returns:
        Why the run stopped before its end, to be started again; None if it is complete.

    Raises:
        UserError: something the user can mend, found before or during the run.
    """
    stop = StopRequest(max_seconds(config.trainer.max_time))
    stop.install()
    context = parallel.initialize(config.actor, config.seed)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    random_state.seed(config.seed + rank)
    console = RunConsole(rank)
    processes: list[str] = [""] * world_size
    dist.all_gather_object(processes, f"{socket.gethostname()}:{os.getpid()}")
    if rank == 0:
        write_status(Path(config.output_dir), "running", processes=processes)
    transformers_logging.disable_progress_bar()  # every rank would draw its own
    output = Path(config.output_dir)
    model_path = Path(config.model.path)

    tokenizer = AutoTokenizer.from_pretrained(str(model_path), local_files_only=True)
    rewards = VerifierPool(tokenizer, config.reward)
    problems = {}
    held_out: set[str] = set()
    for name, dataset in (("validation", config.data.validation), ("training", config.data.train)):
        problems[name], report = _load_problems(dataset, config.data, tokenizer, rewards, held_out)
        held_out = {problem.problem_id for problem in problems["validation"]}
        console.say(f"{name} data: {report}")

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
    engines = Dealing(engine_ranks(config, world_size))
    segment = None
    weights = actor.named_weights
    if loads_from_host(config.rollout, context.device):
        segment = segment_of_host(model_path, _DTYPES[config.model.dtype], engines.ranks, this_host())
        weights = actor.host_weights(segment.weights if segment else None, this_host())
    engine = make_engine(
        config.rollout,
        model_path,
        tokenizer,
        here=rank in engines.ranks,
        dtype=_DTYPES[config.model.dtype],
        device=context.device,
        max_model_len=trajectory_tokens(config),
        output_dir=output,
        segment=segment,
    )
    prompts = PromptLoader(problems["training"], config.data.shuffle, config.seed)
    checkpoints = Checkpointer(
        config,
        actor,
        prompts,
        context=context,
        problem_digests={name: problems_digest(content) for name, content in problems.items()},
        stop=stop,
        console=console,
    )
    checkpoints.resume()
    writer = keeper = None
    if rank == 0:
        (output / "validation").mkdir(parents=True, exist_ok=True)
        (output / "config.yaml").write_text(to_yaml(config))
        write_questions(output, problems["validation"])
        writer = MetricsWriter(output, make_trackers(config, anew=checkpoints.step == 0))
        keeper = TreeKeeper(
            TreeArchive(output),
            config.logger.trees,
            config.ib_score,
            {**asdict(config.ib_score), **config.method},
            {problem.problem_id: problem for problem in problems["training"]},
            partial(tokenizer.decode, clean_up_tokenization_spaces=False),
        )

    def export(name: str) -> None:
        write_model(output / name, actor.named_weights(), like=model_path, write=rank == 0)
        console.say(f"model written to {output / name}")

    stopped = None
    try:
        IBTPOTrainer(
            config=config,
            engines=engines,
            actor=actor,
            engine=engine,
            weights=weights,
            sampling=engine.sampling,
            strategy=make_strategy(config.sampler, config.ib_score, config.rollout.max_new_tokens),
            method=make_method(config.method),
            splitter=make_splitter(config.sampler.segment_tokens, tokenizer),
            probe_splitter=make_splitter(None, tokenizer),
            rewards=rewards,
            prompts=prompts,
            validation=problems["validation"],
            checkpoints=checkpoints,
            writer=writer,
            keeper=keeper,
            console=console,
            export=export,
        ).fit()
    except StoppedError as request:
        stopped = str(request)
        console.say(f"stopped: {stopped}; the same command goes on")
    finally:
        rewards.close()
        engine.close()
        if writer is not None:
            writer.close()
    if rank == 0:
        state: State = "complete" if stopped is None else "requeue"
        write_status(output, state, step=checkpoints.step, sampled_tokens=checkpoints.sampled_tokens, reason=stopped)
    parallel.shutdown()
    return stopped


def _load_problems(
    dataset: DatasetConfig,
    data: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    rewards: VerifierPool,
    held_out: Collection[str],
) -> tuple[list[Problem], str]:
    """The problems of a data set whose gold answer can be verified, the same on every rank, and a line about them.

    Raises:
        UserError: nothing usable was found, or ranks read different data.
    """
    problems, report = load_problems(dataset, data, tokenizer)
    problems = leave_out(problems, held_out, report)
    digests: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(digests, problems_digest(problems))
    if len(set(digests)) > 1:
        raise UserError(
            f"{report.source}: ranks read different problems; give all of them the same files and library versions"
        )
    # Checking gold answers may run into a time limit on one rank and not on another: rank 0 decides for all.
    verdict: list[object] = [None, None]
    if dist.get_rank() == 0:
        try:
            kept = keep_verifiable(problems, rewards, report)
            verdict = [{problem.problem_id for problem in kept}, report.summary()]
        except UserError as error:
            verdict = [None, str(error)]
    dist.broadcast_object_list(verdict, src=0)
    kept_ids, text = verdict
    if not isinstance(kept_ids, set):
        raise UserError(str(text))
    return [problem for problem in problems if problem.problem_id in kept_ids], str(text)
