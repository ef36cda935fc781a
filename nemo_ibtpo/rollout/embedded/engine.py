"""The embedded engine: continuous batching with prefix re-use on a Hugging Face causal language model.

Life of a request: it waits in a queue until a row is free; the longest prefix that is known is copied into the row;
what is left of its prefix, except the last token, is prefilled together with that of other newcomers; then it
takes part in every decode step until it ends, and the keys and values it leaves behind serve later requests.

Logits come from decode steps only: the last prefix token goes through the same step as sampled tokens do. A prefix
that is wholly known therefore needs no pass of its own, and a branch joins the running batch at once.

Invariants (asserted by ``tests/unit/rollout/``):

- A rollout is a function of weights, prefix and seed, up to the rounding of the matrix products.
- Requests with a common unknown prefix that wait at the same time compute it once.
- At most ``cache_tokens`` positions of keys and values are held: ``max_batch_size`` rows of ``max_model_len``
  for the running sequences, the rest for known prefixes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.rope import is_fixed, positions
from nemo_ibtpo.rollout.embedded.prefix_cache import PrefixCache
from nemo_ibtpo.rollout.embedded.row_cache import GROUPED_ATTENTION, RowCache
from nemo_ibtpo.rollout.embedded.running_batch import RunningBatch
from nemo_ibtpo.rollout.embedded.sampling import kept_tokens, penalized, sample, sampling_logprobs, uniforms
from nemo_ibtpo.rollout.embedded.stopping import StopRules
from nemo_ibtpo.rollout.embedded.weight_update import copy_weights
from nemo_ibtpo.rollout.engine import EngineStats, SamplingParams
from nemo_ibtpo.rollout.requests import check_request, check_sampling
from nemo_ibtpo.tree.node import FinishReason
from nemo_ibtpo.tree.rollouts import Rollout, RolloutRequest, Unfinished

# Tokens of one prefill pass, padding included: bounds its activations and masks.
_PREFILL_TOKENS = 8192
# Newcomers wait for so many steps at most. Admitting several at once makes prefill passes fewer and larger.
_DECODE_STEPS_PER_POLL = 8


class TransformersEngine:
    """A ``RolloutEngine`` that runs in this process, on the device of the model.

    Args:
        model: the engine owns it from now on: it sets the attention function and writes new weights into it.
        tokenizer: decodes sampled tokens for stop strings.
        sampling: how tokens are drawn.
        max_batch_size: most sequences decoded at once.
        cache_tokens: positions of keys and values held in all; at least ``(max_batch_size + 1) * max_model_len``.
        max_model_len: most tokens of a sequence, its prefix included.

    Attributes:
        stats: counters since the engine was made.
        sampling: the sampling parameters in use.

    Raises:
        UserError: sizes that do not fit each other, a model that the engine cannot run, or sampling parameters
            out of range.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        sampling: SamplingParams,
        max_batch_size: int,
        cache_tokens: int,
        max_model_len: int,
    ) -> None:
        _check_model(model, max_model_len)
        needed = (max_batch_size + 1) * max_model_len
        if max_batch_size < 1 or cache_tokens < needed:
            raise UserError(
                f"rollout.cache_tokens is {cache_tokens}, but max_batch_size {max_batch_size} (at least 1) needs"
                f" (max_batch_size + 1) * max_model_len = {needed}: raise cache_tokens or lower max_batch_size"
            )
        model.eval()
        model.set_attn_implementation(GROUPED_ATTENTION)
        self._model = model
        self._tokenizer = tokenizer
        self._vocab_size: int = model.get_input_embeddings().num_embeddings
        self._max_model_len = max_model_len
        self._rows = RowCache(
            model.config, rows=max_batch_size, max_length=max_model_len, dtype=model.dtype, device=model.device
        )
        self._prefixes = PrefixCache(cache_tokens - max_batch_size * max_model_len)
        self._batch = RunningBatch(max_batch_size, max_model_len)
        self._queue: deque[RolloutRequest] = deque()
        self._unfinished: set[Hashable] = set()
        self._finished: list[Rollout] = []  # while requests were cut
        self.stats = EngineStats()
        check_sampling(sampling, self._vocab_size)
        self.sampling = sampling
        self._stop_rules = StopRules(sampling, tokenizer, self._vocab_size)

    def set_sampling(self, params: SamplingParams) -> None:
        """Use other sampling parameters from now on.

        Raises:
            UserError: a parameter is out of range.
            RuntimeError: requests are unfinished.
        """
        self._require_idle("change the sampling parameters")
        check_sampling(params, self._vocab_size)
        ends = (params.stop, params.eos_token_ids)
        if ends != (self.sampling.stop, self.sampling.eos_token_ids):  # they read the whole vocabulary: seconds
            self._stop_rules = StopRules(params, self._tokenizer, self._vocab_size)
        self.sampling = params

    def submit(self, requests: Sequence[RolloutRequest]) -> None:
        """Queue requests; either all of them are accepted or none is.

        Raises:
            UserError: a request that cannot be run; says which and why.
        """
        new_ids: set[Hashable] = set()
        for request in requests:
            check_request(request, max_model_len=self._max_model_len, vocab_size=self._vocab_size)
            if request.request_id in self._unfinished or request.request_id in new_ids:
                raise UserError(f"request {request.request_id!r} is already waiting or running: ids must be unique")
            new_ids.add(request.request_id)
        self._queue.extend(requests)
        self._unfinished |= new_ids

    @torch.inference_mode()
    def poll(self) -> list[Rollout]:
        """Admit what fits, run a few decode steps, and return the rollouts that finished.

        Raises:
            UserError: the model's logits are not finite; every unfinished request is dropped.
        """
        self._admit()
        finished, self._finished = self._finished, []
        for _ in range(_DECODE_STEPS_PER_POLL):
            if not self._batch:
                break
            finished += self._decode_step()
        return finished

    def progress(self, at_least: Mapping[Hashable, int]) -> Mapping[Hashable, int]:
        """Tokens drawn so far for those of the requests that run and have so many."""
        drawn = zip(self._batch.requests, self._batch.sampled.tolist(), strict=True)
        return {one.request_id: count for one, count in drawn if count >= at_least.get(one.request_id, math.inf)}

    @torch.inference_mode()
    def cut(self, at_least: Mapping[Hashable, int]) -> list[Unfinished]:
        """End all requests, each with at least so many tokens; see ``RolloutSource``.

        Raises:
            UserError: as :meth:`poll`.
        """
        while any(
            count and not self.progress({id_: count}) for id_, count in at_least.items() if id_ in self._unfinished
        ):
            self._finished = self.poll()
        cut = [self._batch.unfinished(row) for row in range(len(self._batch))]
        cut += [Unfinished(request.request_id, (), ()) for request in self._queue]
        self._queue.clear()
        self._unfinished.clear()
        self._batch.clear()
        return cut

    def sleep(self) -> None:
        """Drop the cached prefixes, which the next weights make worthless.

        Raises:
            RuntimeError: requests are unfinished.
        """
        self._require_idle("sleep")
        self._prefixes.clear()

    def update_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Replace the weights, given under their Hugging Face names, and forget every cached prefix.

        A tied ``lm_head.weight`` may be absent.

        Raises:
            UserError: a weight is missing, unknown or of another shape; it is named. Some weights are new then.
            RuntimeError: requests are unfinished.
        """
        self._require_idle("update the weights")
        self._forget()
        copy_weights(self._model, weights)

    def close(self) -> None:
        """Drop the model, its caches and every request; the engine is of no use afterwards."""
        self._forget()
        del self._model, self._rows

    def _require_idle(self, what: str) -> None:
        if self._unfinished:
            raise RuntimeError(f"cannot {what} while {len(self._unfinished)} requests are unfinished")

    def _forget(self) -> None:
        """Drop requests and caches. Rows are erased too: after NaN they would poison every later sequence."""
        self._queue.clear()
        self._unfinished.clear()
        self._finished.clear()
        self._batch.clear()
        self._prefixes.clear()
        self._rows.zero()

    def _admit(self) -> None:
        """Move requests from the queue into free rows, oldest first, in waves.

        A request whose next unknown token another one of the wave is about to compute waits for the next wave
        and finds it known then. Sharing the longest known prefix and the token after it is exactly that case.
        """
        while self._queue and len(self._batch) < self._batch.rows:
            first_row = len(self._batch)
            known: list[int] = []
            computing: set[tuple[int, ...]] = set()
            waiting: list[RolloutRequest] = []
            while self._queue and len(self._batch) < self._batch.rows:
                request = self._queue.popleft()
                segments = self._prefixes.match(request.prefix[:-1])
                length = sum(segment.shape[-2] for segment in segments)
                if length < len(request.prefix) - 1:
                    if (next_unknown := request.prefix[: length + 1]) in computing:
                        waiting.append(request)
                        continue
                    computing.add(next_unknown)
                self._rows.write_prefix(self._batch.add(request), segments)
                known.append(length)
            self._queue.extendleft(reversed(waiting))
            self._prefill(first_row, np.array(known))

    def _prefill(self, first_row: int, known_B: NDArray[np.int64]) -> None:
        """Compute keys and values of the rows from ``first_row`` on, from their known length to their last prefix
        token but one, and remember them."""
        batch, rows = self._batch, np.arange(first_row, len(self._batch))
        missing_B = batch.prefix_length[rows] - 1 - known_B
        self.stats.cached_prefix_tokens += int(known_B.sum())
        self.stats.prefill_tokens += int(missing_B.sum()) + len(rows)  # the last one goes through the decode step
        columns_per_pass = max(1, _PREFILL_TOKENS // len(rows))
        for start in range(0, int(missing_B.max()), columns_per_pass):
            columns_T = np.arange(start, min(start + columns_per_pass, int(missing_B.max())))
            positions_BT = np.where(columns_T < missing_B[:, None], known_B[:, None] + columns_T, self._rows.bin)
            self._forward(first_row, batch.tokens[rows[:, None], positions_BT], positions_BT)
        for row in rows[missing_B > 0].tolist():
            prefix = batch.requests[row].prefix[:-1]
            self._prefixes.insert(prefix, self._rows.read(row, len(prefix)))

    def _decode_step(self) -> list[Rollout]:
        """Give every running sequence one more token; return those that end with it."""
        batch = self._batch
        positions_B1 = batch.length[: len(batch), None] - 1
        logits_BV = self._forward(0, batch.last_tokens[:, None], positions_B1)
        uniforms_B = torch.from_numpy(uniforms(batch.seed[: len(batch)], batch.sampled))
        if (penalty := self.sampling.repetition_penalty) != 1:
            logits_BV = penalized(logits_BV, torch.from_numpy(batch.tokens_so_far).to(logits_BV.device), penalty)
        distribution_BV = sampling_logprobs(logits_BV, self.sampling)
        tokens_B, logprobs_B = sample(distribution_BV, uniforms_B.to(logits_BV.device))
        tokens, logprobs = tokens_B.cpu().numpy(), logprobs_B.cpu().numpy()
        if not np.isfinite(logprobs).all():
            self._fail(int(np.flatnonzero(~np.isfinite(logprobs))[0]))
        batch.append(tokens, logprobs, kept_tokens(distribution_BV) if self.sampling.is_truncated else None)
        self.stats.sampled_tokens += len(batch)
        return self._retire(self._stop_rules.finished_rows(batch))

    def _fail(self, row: int) -> None:
        request, position = self._batch.requests[row], int(self._batch.length[row])
        self._forget()
        raise UserError(
            f"request {request.request_id!r}: the model's logits for token {position} are not finite; its weights"
            f" hold NaN or overflow in {self._model.dtype} (diverged training or a damaged checkpoint)"
        )

    def _retire(self, reasons: dict[int, FinishReason]) -> list[Rollout]:
        """Take finished rows out of the batch and remember their keys and values."""
        batch = self._batch
        for row in reasons:
            computed = batch.sequence(row)[:-1]  # the last token was sampled but never went through the model
            self._prefixes.insert(computed, self._rows.read(row, len(computed)))
        rollouts = [batch.rollout(row, reason) for row, reason in reasons.items()]
        self._unfinished.difference_update(rollout.request_id for rollout in rollouts)
        sources, targets = batch.remove(list(reasons))
        if targets:
            self._rows.move(sources, targets, int(batch.length[targets].max()))
        return rollouts

    def _forward(self, first_row: int, tokens_BT: NDArray[np.int64], positions_BT: NDArray[np.int64]) -> torch.Tensor:
        """Run the model on neighbouring rows; return the logits [B, V] of the last column."""
        width = int(positions_BT[positions_BT != self._rows.bin].max()) + 1
        positions = torch.from_numpy(positions_BT).to(self._model.device)
        mask = self._rows.select(first_row, positions, width)
        output = self._model(
            input_ids=torch.from_numpy(tokens_BT).to(self._model.device),
            position_ids=positions,
            attention_mask=mask,
            past_key_values=self._rows,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]


def _check_model(model: PreTrainedModel, max_model_len: int) -> None:
    """Refuse what the row cache cannot serve.

    Raises:
        UserError: says what the model has and what is supported.
    """
    config = model.config
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    if layer_types != {"full_attention"}:
        raise UserError(
            f"{config.model_type} model with layers {sorted(layer_types)}: only full attention is supported"
        )
    values = config.to_dict()
    if not is_fixed(values):
        raise UserError(
            f"rope type {values['rope_parameters']['rope_type']!r} rotates by the longest sequence in the batch, so"
            " rollouts would depend on what is decoded beside them; load the model with rollout.factory.load_model"
        )
    if not 1 < max_model_len <= positions(values):
        raise UserError(
            f"max_model_len {max_model_len} must lie between 2 and the model's {positions(values)} positions"
            " (max_position_embeddings)"
        )
