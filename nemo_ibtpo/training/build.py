"""Builds the parts of a run.

Whatever is started is registered with an ``ExitStack`` at once, so that a part that fails later leaves no process
behind: neither verifiers nor an engine.
"""

from __future__ import annotations

from contextlib import ExitStack
from itertools import chain
from pathlib import Path

import torch.distributed as dist
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from nemo_ibtpo.checkpoints.stopping import StopRequest
from nemo_ibtpo.collectives import Dealing
from nemo_ibtpo.config.carry_over import check_enough_problems, make_trees_in_flight
from nemo_ibtpo.config.layout import engine_ranks, trajectory_tokens
from nemo_ibtpo.config.mixtures import training_parts
from nemo_ibtpo.config.schema import RunConfig
from nemo_ibtpo.data.mixture import make_prompts
from nemo_ibtpo.data.problems import problems_digest
from nemo_ibtpo.dtypes import TORCH_DTYPES
from nemo_ibtpo.megatron.actor import MegatronActor
from nemo_ibtpo.megatron.architecture import load_architecture
from nemo_ibtpo.megatron.bridged_weights import load_bridged
from nemo_ibtpo.megatron.model import fusion_of
from nemo_ibtpo.megatron.parallel import ParallelContext
from nemo_ibtpo.megatron.safetensors_io import SafetensorsDirectory, write_model
from nemo_ibtpo.methods import make_method
from nemo_ibtpo.reporting.progress import RunConsole
from nemo_ibtpo.rewards.pool import VerifierPool
from nemo_ibtpo.rollout.engine import RolloutEngine
from nemo_ibtpo.rollout.factory import make_engine
from nemo_ibtpo.rollout.transport.factory import make_transport
from nemo_ibtpo.training.checkpoint_store import CheckpointStore
from nemo_ibtpo.training.loop import Parts
from nemo_ibtpo.training.output import RunOutput
from nemo_ibtpo.training.problems import load_training_and_validation
from nemo_ibtpo.training.run_state import RunState
from nemo_ibtpo.training.sampling import Sampling
from nemo_ibtpo.training.step_clock import StepClock
from nemo_ibtpo.training.stopping import StopConsensus


def build(
    config: RunConfig, context: ParallelContext, request: StopRequest, console: RunConsole, stack: ExitStack
) -> tuple[Parts, RunState]:
    """The parts of a run, and its state: that of the checkpoint to go on from, or of a run that begins.

    A collective over all ranks.

    Args:
        config: validated.
        context: of the process groups that are there.
        request: what this rank is asked.
        console: of this rank.
        stack: ends what was started.

    Raises:
        UserError: a part cannot be built; says which and why.
    """
    model_path = Path(config.model.path)
    tokenizer = AutoTokenizer.from_pretrained(str(model_path), local_files_only=True)
    rewards = VerifierPool(tokenizer, config.reward)
    stack.callback(rewards.close)
    problems = load_training_and_validation(config.data, tokenizer, rewards, console)
    validation = problems.validation
    weights = {part.name: part.weight for part in training_parts(config.data)}
    prompts = make_prompts(problems.training, weights, shuffle=config.data.shuffle, seed=config.seed)
    check_enough_problems(config, len(prompts))
    in_flight = make_trees_in_flight(config)

    actor = _build_actor(config, context, console)
    digests = {"training": prompts.digest, "validation": problems_digest(validation)}
    store = CheckpointStore(config, actor, digests, console)
    stack.callback(store.close)
    state = RunState(config.trainer, prompts, in_flight, context)
    store.resume(state)  # before an engine takes its share of the device

    engines = Dealing(engine_ranks(config, dist.get_world_size()))
    engine = _build_engine(config, context, tokenizer, engines)
    stack.callback(engine.close)
    transport = make_transport(config.rollout, actor, engines.ranks, context.device)
    stack.callback(transport.close)
    if dist.get_rank() in engines.ranks:
        transport.attach(engine)

    def export(directory: Path) -> None:
        write_model(directory, actor.named_weights(), like=model_path, write=dist.get_rank() == 0)

    output = RunOutput(config, tokenizer, list(chain(*problems.training.values())), export, console)
    output.open(state.logged_step, validation, stack)
    clock, stop = StepClock(console), StopConsensus(request)
    sampling = Sampling(config, engine, engines, rewards, prompts, in_flight, validation, tokenizer, stop, clock)
    method = make_method(config.method)
    sources = problems.sources
    return Parts(config, sources, sampling, method, actor, transport, output, store, stop, clock), state


def _build_actor(config: RunConfig, context: ParallelContext, console: RunConsole) -> MegatronActor:
    model_path, trainer, longest = Path(config.model.path), config.trainer, trajectory_tokens(config)
    by_bridge = config.model.provider == "bridge"
    weights = SafetensorsDirectory(model_path)
    architecture = load_bridged(model_path, weights) if by_bridge else load_architecture(model_path, longest)
    if context.device.type == "cuda":
        console.say(f"fused gradient accumulation: {fusion_of(architecture, context.device).why}")
    return MegatronActor(
        architecture,
        weights,
        actor=config.actor,
        optimizer=config.optimizer,
        total_updates=trainer.max_steps * trainer.num_prompts_per_step // trainer.num_prompts_per_update,
        dtype=TORCH_DTYPES[config.model.dtype],
        temperature=config.rollout.temperature,
        keep_reference=config.loss.kl_coef > 0,
        context=context,
    )


def _build_engine(
    config: RunConfig, context: ParallelContext, tokenizer: PreTrainedTokenizerBase, engines: Dealing
) -> RolloutEngine:
    """This rank's engine or its stand-in."""
    return make_engine(
        config.rollout,
        config.model.path,
        tokenizer,
        here=dist.get_rank() in engines.ranks,
        dtype=TORCH_DTYPES[config.model.dtype],
        device=context.device,
        max_model_len=trajectory_tokens(config),
        output_dir=Path(config.output_dir),
        for_training=True,
    )
