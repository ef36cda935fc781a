"""The Megatron actor: the policy that is trained, through Megatron-Core's own schedules and optimizer.

Life cycle, in the manner of NeMo-Aligner's alignable models::

    actor.prepare_for_inference(); actor.logprobs(...); actor.reference_logprobs(...); actor.finish_inference()
    actor.prepare_for_training(); actor.train_step(...); actor.finish_training()
    for name, tensor in actor.named_weights(): ...; actor.weight_shards()
    actor.save(path); actor.load(path)

There is one forward function; what becomes of the hidden states is a post-processor's affair. The loss arrives
divided by a denominator that is global over the optimizer step, and gradients are summed over micro-batches and
ranks, so the gradient does not depend on how the step was cut up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import tee
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.schema import ActorConfig, OptimizerConfig
from nemo_ibtpo.losses import Loss
from nemo_ibtpo.megatron import checkpoint
from nemo_ibtpo.megatron.architecture import Architecture
from nemo_ibtpo.megatron.compat import AUX_LOSS_COUNTS_TENSOR_PARALLEL_GROUP
from nemo_ibtpo.megatron.data_parallel import WeightGather, data_parallel
from nemo_ibtpo.megatron.host_copies import HostCopies
from nemo_ibtpo.megatron.inputs import ModelInputs
from nemo_ibtpo.megatron.logprobs import tree_logprobs
from nemo_ibtpo.megatron.model import build_model, output_weight, transformer_config
from nemo_ibtpo.megatron.offload import Offload
from nemo_ibtpo.megatron.optimization import build_optimizer
from nemo_ibtpo.megatron.parallel import ParallelContext
from nemo_ibtpo.megatron.snapshot import HostMemory, Snapshot
from nemo_ibtpo.megatron.tree_attention import attention_kernel
from nemo_ibtpo.megatron.weights import WeightExporter, WeightShard, load_weights
from nemo_ibtpo.tree.context_parallel import padded_length
from nemo_ibtpo.tree.packing import FloatArray, PackedBatch

REFERENCE = "reference"


class MegatronActor:
    """A Hugging Face model on this rank's share of a tensor x context x pipeline x data parallel layout.

    Args:
        architecture: the model.
        weights: full Hugging Face tensors by name, looked up one at a time.
        actor: the parallel layout.
        optimizer: Adam's settings; None builds an actor that only computes log-probabilities.
        total_updates: optimizer steps of the whole run, for the decay.
        dtype: compute precision.
        temperature: of the sampling distribution whose log-probabilities are computed.
        keep_reference: keep a host copy of the initial weights as the reference policy.
        context: what :func:`nemo_ibtpo.megatron.parallel.initialize` returned.

    Raises:
        UserError: the weights do not fit the architecture.
    """

    def __init__(
        self,
        architecture: Architecture,
        weights: Mapping[str, Tensor],
        *,
        actor: ActorConfig,
        optimizer: OptimizerConfig | None,
        total_updates: int,
        dtype: torch.dtype,
        temperature: float,
        keep_reference: bool,
        context: ParallelContext,
    ) -> None:
        self._architecture = architecture
        self._actor = actor
        self._temperature = temperature
        self._context = context
        shards = actor.tensor_model_parallel_size if actor.sequence_parallel else 1
        self._length_multiple = math.lcm(shards, attention_kernel(context.device).LENGTH_MULTIPLE)
        with context.scope():
            config = transformer_config(architecture, actor, dtype, context.device)
            config.finalize_model_grads_func = _sum_gradients
            self._config = config
            chunks = build_model(architecture, config, context.device)
            load_weights(chunks, architecture, weights)
            self._exporter = WeightExporter(chunks, architecture)
            self._copies = HostCopies(torch.nn.ModuleList(chunks))
            if keep_reference:
                self._copies.save(REFERENCE)
            self._chunks = data_parallel(chunks, config, actor, context.device)
            self._gather = WeightGather(self._chunks)
            self._offload = Offload(actor.offload, self._chunks, None)
            if optimizer is not None:
                self._optimizer, self._lr_scheduler = build_optimizer(
                    self._chunks, optimizer, actor, dtype, total_updates
                )
                self._offload = Offload(actor.offload, self._chunks, self._optimizer)
            self._leave_device()
        self._snapshot_memory = HostMemory()

    @property
    def data_parallel_rank(self) -> int:
        """Which share of a step's trees this rank computes."""
        return int(parallel_state.get_data_parallel_rank())

    @property
    def data_parallel_size(self) -> int:
        """Shares a step's trees are cut into."""
        return int(parallel_state.get_data_parallel_world_size())

    @property
    def attention_weight(self) -> float:
        """Work for one pair of tokens that attend to each other, relative to the other work for one token.

        The backward pass takes twice as much for both.
        """
        return self._architecture.flops_per_pair / self._architecture.flops_per_token

    @property
    def microbatch_multiple(self) -> int:
        """What the number of micro-batches of a call must be a multiple of.

        The interleaved schedule sends them through a chunk in groups, one micro-batch per stage.
        """
        return self._actor.pipeline_model_parallel_size if len(self._chunks) > 1 else 1

    def prepare_for_inference(self) -> None:
        """Before log-probabilities are computed."""
        for chunk in self._chunks:
            chunk.eval()

    def finish_inference(self) -> None:
        """After log-probabilities were computed."""
        self._release_cache()

    def prepare_for_training(self) -> None:
        """Before the optimizer steps of an iteration."""
        for chunk in self._chunks:
            chunk.train()

    def finish_training(self) -> None:
        """After the optimizer steps of an iteration."""
        self._release_cache()

    @torch.no_grad()
    def logprobs(self, batches: Sequence[PackedBatch]) -> list[FloatArray]:
        """Log-probabilities (nats, at the sampling temperature) of every token in the loss.

        Args:
            batches: this data-parallel rank's micro-batches; all ranks have equally many.

        Returns:
            For each micro-batch [T] float32, 0 for tokens outside the loss; the same on all ranks of a
            tensor x context x pipeline parallel group.
        """

        def spread(hidden_Lh: Tensor, weight_Vh: Tensor, inputs: ModelInputs) -> Tensor:
            logprobs_T = hidden_Lh.new_zeros(inputs.num_tokens, dtype=torch.float32)
            logprobs_T[inputs.in_loss] = self._logprobs(hidden_Lh, weight_Vh, inputs)[0].float()
            return logprobs_T

        with self._context.scope():
            self._bring_weights()
            results = self._run(batches, spread, forward_only=True)
            return [self._from_last_stage(results, i, (len(b),)).cpu().numpy() for i, b in enumerate(batches)]

    @torch.no_grad()
    def logits(self, batches: Sequence[PackedBatch]) -> list[FloatArray]:
        """Logits [T, vocab_size] float32 of each micro-batch, on every rank; to verify weights, not to train."""
        group = parallel_state.get_tensor_model_parallel_group()

        def gather(hidden_Lh: Tensor, weight_Vh: Tensor, inputs: ModelInputs) -> Tensor:
            logits_LV = hidden_Lh @ weight_Vh.t()
            shards = [torch.empty_like(logits_LV) for _ in range(group.size())]
            dist.all_gather(shards, logits_LV, group=group)
            own_LV = torch.cat(shards, dim=1)[:, : self._architecture.vocab_size]
            return inputs.gather_rows(own_LV.float().contiguous())

        with self._context.scope():
            self._bring_weights()
            results = self._run(batches, gather, forward_only=True)
            vocab = self._architecture.vocab_size
            return [self._from_last_stage(results, i, (len(b), vocab)).cpu().numpy() for i, b in enumerate(batches)]

    def reference_logprobs(self, batches: Sequence[PackedBatch]) -> list[FloatArray]:
        """:meth:`logprobs` under the frozen reference policy."""
        with self._context.scope():
            self._bring_weights()
            with self._copies.swapped_in(REFERENCE):
                return self.logprobs(batches)

    @property
    def learning_rate(self) -> float:
        """Of the next optimizer step."""
        rate: float = self._optimizer.param_groups[0]["lr"]
        return rate

    def train_step(
        self,
        batches: Sequence[PackedBatch],
        loss: Loss,
        denominator: float,
        before_step: Callable[[], None] | None = None,
    ) -> dict[str, float]:
        """One optimizer step.

        Args:
            batches: this data-parallel rank's micro-batches; all ranks have equally many. With their
                ``old_logprobs``, unless this is the first update since they were sampled.
            loss: of a micro-batch's tokens.
            denominator: what it is divided by, over all ranks and micro-batches.
            before_step: called on every rank between the backward pass and the optimizer's step; if it raises (on
                all ranks), the weights are left as they were.

        Returns:
            The sums that the loss reports, over all micro-batches and ranks, and ``loss``,
            ``grad_norm`` and ``lr``; the same on every rank.

        Raises:
            UserError: the loss or a gradient is not finite; the weights are left as they were.
        """

        def to_loss(
            hidden_Lh: Tensor, weight_Vh: Tensor, inputs: ModelInputs
        ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
            logprobs_N, entropies_N = self._logprobs(hidden_Lh, weight_Vh, inputs)
            value, sums = loss(inputs.for_loss(logprobs_N, entropies_N, denominator))
            if len(inputs.in_loss) == 0:
                # A micro-batch without a token in the loss still takes part in the backward pass.
                value = value + logprobs_N.sum()
            # A loss may make a sum of its own, such as a count, which lies where torch makes tensors by default.
            report = {name: own.detach().to(value.device) for name, own in sums.items()} | {"loss": value.detach()}
            return value, torch.zeros((), dtype=torch.int), report

        with self._context.scope():
            self._offload.bring_all()
            for chunk in self._chunks:
                chunk.zero_grad_buffer()
            self._optimizer.zero_grad()
            self._weigh_aux_loss(batches)
            reported = self._run(batches, to_loss, forward_only=False)
            metrics = self._reduce(reported)
            if before_step is not None:
                before_step()
            self._refuse_non_finite(metrics)
            _, grad_norm, _ = self._optimizer.step()
            self._gather.after_step()
            metrics |= {"grad_norm": float(grad_norm), "lr": self.learning_rate}
            self._lr_scheduler.step(increment=1)
            return metrics

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """(Hugging Face name, full tensor), on every rank; a collective that must be consumed to its end.

        An engine that takes them samples next: what ``actor.offload`` names is in host memory at the end.
        """
        with self._context.scope():
            self._offload.park_training_state()
            self._bring_weights()
            yield from self._exporter.named_weights()
            self._leave_device()

    def weight_shards(self) -> list[WeightShard]:
        """The parts of the weights that this rank holds, for whoever brings them to an engine.

        They are on the device until :meth:`release_weights`.
        """
        with self._context.scope():
            self._offload.park_training_state()
            self._bring_weights()
            return self._exporter.shards()

    def release_weights(self) -> None:
        """Nobody uses :meth:`weight_shards` any more: what ``actor.offload`` names goes to host memory."""
        with self._context.scope():
            self._leave_device()

    def snapshot(self, *, copied: bool) -> Snapshot:
        """Weights, optimizer and learning-rate schedule of this moment, to be written; a collective.

        Args:
            copied: to host memory, one snapshot at a time: training may go on while it is written, and the next one
                may be taken when it has been.
        """
        with self._context.scope():
            self._gather.finish()
            extra = {"scheduler_steps": int(self._lr_scheduler.num_steps)}
            memory = self._snapshot_memory if copied else None
            return checkpoint.training_state(self._chunks, self._optimizer, extra, memory)

    def save(self, path: Path) -> None:
        """Write a snapshot into an empty directory; a collective."""
        self.snapshot(copied=False).write(path)

    def load(self, path: Path) -> None:
        """Take over what :meth:`save` wrote, under whatever layout; a collective over all ranks.

        The reference policy stays what it is.

        Raises:
            UserError: the checkpoint is of another model.
        """
        with self._context.scope():
            self._offload.bring_all()
            extra = checkpoint.load_training_state(path, self._chunks, self._optimizer)
            self._lr_scheduler.num_steps = extra["scheduler_steps"]
            self._lr_scheduler.step(increment=0)  # sets the rate
            self._leave_device()

    def load_weights(self, path: Path, round_to: torch.dtype) -> None:
        """Take over the weights of a checkpoint, with or without optimizer state; a collective over all ranks.

        Args:
            path: what :meth:`save` or ``nemo-ibtpo convert`` wrote.
            round_to: type that the weights are rounded to on the way, which may be narrower than the actor's.

        Raises:
            UserError: the checkpoint is of another model.
        """
        with self._context.scope():
            self._bring_weights()
            checkpoint.load_weights(path, self._chunks)
            with torch.no_grad():
                for chunk in self._chunks:
                    for parameter in chunk.parameters():
                        parameter.copy_(parameter.to(round_to))

    def named_gradients(self) -> Iterator[tuple[str, Tensor]]:
        """(Hugging Face name, full gradient) of the last optimizer step, after clipping; to look into a run.

        A collective like :meth:`named_weights`. Needs ``use_distributed_optimizer: false``, since that shards
        the reduced gradients over the data-parallel ranks.
        """
        with self._context.scope():
            yield from self._exporter.named_gradients()

    def _bring_weights(self) -> None:
        """All weights of this rank are on the device, for whoever reads them outside the forward pass of training."""
        self._offload.bring_weights()
        self._gather.finish()

    def _leave_device(self) -> None:
        """Make room on the device for an engine that samples."""
        self._gather.finish()
        self._offload.park_training_state()
        self._offload.park_weights()
        self._release_cache()

    def _release_cache(self) -> None:
        """Hand freed activations back to the GPU, which an engine in another process shares."""
        if self._context.device.type == "cuda":
            torch.cuda.empty_cache()

    def _weigh_aux_loss(self, batches: Sequence[PackedBatch]) -> None:
        """Set the coefficient of the experts' load-balancing loss for one optimizer step.

        Under ``calculate_per_token_loss`` Megatron multiplies the loss of a micro-batch by the tokens that a rank
        routes (0.16) or that its tensor- and context-parallel group routes (0.19), and counts on a later division,
        which we do not make. Divided here by those of the step, the loss is the mean over micro-batches, weighted by
        their tokens.
        """
        experts = self._architecture.experts
        if experts is None:
            return
        coefficient = self._actor.moe_aux_loss_coef
        coefficient = experts.aux_loss_coef if coefficient is None else coefficient
        ranks = self._actor.context_parallel_size
        routed = float(sum(padded_length(len(batch), self._length_multiple, ranks) for batch in batches))
        if not AUX_LOSS_COUNTS_TENSOR_PARALLEL_GROUP:
            routed /= self._actor.tensor_model_parallel_size * ranks
        tokens = torch.tensor(routed, device=self._context.device)
        dist.all_reduce(tokens, group=parallel_state.get_data_parallel_group())
        self._config.moe_aux_loss_coeff = coefficient / float(tokens)

    def _run(self, batches: Sequence[PackedBatch], post_process: Any, *, forward_only: bool) -> list[Any]:
        """Run Megatron's schedule; what the post-processor returned on the last stage, nothing elsewhere."""
        context = parallel_state.get_context_parallel_group()
        inputs = (ModelInputs(batch, self._length_multiple, self._context.device, context) for batch in batches)
        results: list[Any] = get_forward_backward_func()(
            forward_step_func=partial(self._forward_step, post_process=post_process),
            # Each chunk of the model goes through all micro-batches; they share what was prepared.
            data_iterator=list(tee(inputs, len(self._chunks))),
            model=self._chunks,
            num_microbatches=len(batches),
            seq_length=max(map(len, batches)),  # shapes are exchanged; this is not relied upon
            micro_batch_size=1,
            forward_only=forward_only,
            collect_non_loss_data=forward_only,
        )
        return results

    @staticmethod
    def _forward_step(
        inputs_of_chunk: Iterator[ModelInputs], chunk: torch.nn.Module, post_process: Any
    ) -> tuple[Tensor, Any]:
        inputs = next(inputs_of_chunk)
        output = chunk(
            input_ids=inputs.tokens[None],
            position_ids=inputs.depth[None],
            attention_mask=None,
            packed_seq_params=inputs.sequence,
        )

        def from_hidden(hidden_1Lh: Tensor, non_loss_data: bool = False) -> Any:
            return post_process(hidden_1Lh[0], output_weight(chunk.module), inputs)

        return output, from_hidden

    def _logprobs(self, hidden_Lh: Tensor, weight_Vh: Tensor, inputs: ModelInputs) -> tuple[Tensor, Tensor]:
        logprobs_M, entropies_M = tree_logprobs(
            hidden_Lh,
            weight_Vh,
            inputs.targets,
            inputs.rows,
            vocab_size=self._architecture.vocab_size,
            temperature=self._temperature,
            chunk_tokens=self._actor.logprob_chunk_tokens,
            keep_logits=not self._actor.fused_logprobs,
            kept=inputs.kept,
            group=parallel_state.get_tensor_model_parallel_group(),
        )
        return inputs.gather_in_loss(logprobs_M), inputs.gather_in_loss(entropies_M)

    def _from_last_stage(self, results: Sequence[Tensor], index: int, shape: tuple[int, ...]) -> Tensor:
        """The float32 result of micro-batch ``index`` on every stage; ``results`` is empty except on the last."""
        value = results[index] if results else torch.empty(shape, device=self._context.device)
        group = parallel_state.get_pipeline_model_parallel_group()
        if group.size() > 1:
            dist.broadcast(value, src=parallel_state.get_pipeline_model_parallel_last_rank(), group=group)
        return value

    def _reduce(self, reported: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
        """Sum what the last stages reported over micro-batches and data-parallel ranks, for every rank."""
        totals: list[dict[str, float] | None] = [None]
        if reported:
            names = list(reported[0])
            sums = torch.stack([torch.stack([report[name].double() for report in reported]).sum() for name in names])
            dist.all_reduce(sums, group=parallel_state.get_data_parallel_group())
            totals = [dict(zip(names, sums.tolist(), strict=True))]
        group = parallel_state.get_pipeline_model_parallel_group()
        if group.size() > 1:
            source = parallel_state.get_pipeline_model_parallel_last_rank()
            dist.broadcast_object_list(totals, src=source, group=group)
        assert totals[0] is not None
        return totals[0]

    def _refuse_non_finite(self, sums: Mapping[str, float]) -> None:
        # The clipped surrogate hides a log-probability of -inf; the sums behind the metrics do not.
        odd = next((f"{name} of the step is {value}" for name, value in sums.items() if not np.isfinite(value)), None)
        buffers = (b for chunk in self._chunks for b in (*chunk.buffers, *chunk.expert_parallel_buffers))
        # The largest entry tells, and needs no copy of the buffer as an elementwise test does.
        largest = (torch.linalg.vector_norm(buffer.grad_data, ord=math.inf) for buffer in buffers)
        if odd is None and not all(bool(torch.isfinite(value)) for value in largest):
            odd = "a gradient is not finite"
        finite = torch.tensor(float(odd is None), device=self._context.device)
        dist.all_reduce(finite, op=dist.ReduceOp.MIN)
        if not finite:
            raise UserError(
                f"{odd or 'another rank met a gradient that is not finite'}; the weights were left as they were. "
                "Lower optimizer.lr, or set optimizer.clip_grad; with bf16 try model.dtype=fp32 to see whether "
                "precision is the cause"
            )


def _sum_gradients(model: list[torch.nn.Module], num_tokens: Tensor | None = None, **kwargs: Any) -> None:
    """Megatron's reduction of gradients without its division: the loss has its global denominator already."""
    finalize_model_grads(model, None, **kwargs)
