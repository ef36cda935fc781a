"""The gradient of a training run's loss on one tree, by plain autograd of the Hugging Face model.

It is the gradient of the first update on that tree alone: the run's advantages, credit, denominator and loss, at
pi_theta = pi_old = pi_reference, where nothing is clipped and the KL term is flat. Shared prefixes are computed once:
the packed tree goes through the model with its depths as positions and its ancestors as attention mask, in pieces of
bounded size, which changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from nemo_ibtpo.config.schema import RunConfig
from nemo_ibtpo.experiments.gradient_study.sketch import Sketch
from nemo_ibtpo.losses import LossInputs, make_loss
from nemo_ibtpo.methods import Method, make_method
from nemo_ibtpo.methods.credit import credit_nodes, loss_denominator
from nemo_ibtpo.tree.microbatches import assemble, cut
from nemo_ibtpo.tree.packing import Credit, PackedBatch, pack_tree
from nemo_ibtpo.tree.tree import FloatArray, Tree


class TreeGradients:
    """Computes gradients on trees.

    Args:
        model: stays as it is; its attention must be SDPA, which takes any mask.
        temperature: of sampling; log-probabilities are those of the distribution that was sampled from.
        max_tokens: of one pass.
        sketch: what is kept of a gradient; of ``model.parameters()``.
    """

    def __init__(self, model: PreTrainedModel, *, temperature: float, max_tokens: int, sketch: Sketch) -> None:
        self._model, self._temperature, self._max_tokens, self._sketch = model, temperature, max_tokens, sketch
        self._parameters = list(model.parameters())

    def __call__(self, tree: Tree, configs: Sequence[RunConfig]) -> list[FloatArray]:
        """Sketches of the gradients of the loss on a tree, one a configuration; [K] each.

        Zeros where the configuration leaves the tree out.

        Args:
            tree: its rewards are known.
            configs: differ in the sections ``method``, ``ib_score`` and ``loss``.
        """
        methods = [make_method(config.method) for config in configs]
        credits = [_credit(tree, method, config) for method, config in zip(methods, configs, strict=True)]
        sums = [torch.zeros(self._sketch.size, dtype=torch.float64) for _ in configs]
        trained = [index for index, credit in enumerate(credits) if credit.weight.any()]
        if not trained:
            return [own.numpy() for own in sums]
        packed = [pack_tree(tree, credits[index]) for index in trained]
        for piece in cut(0, packed[0], self._max_tokens):
            batches = [assemble([piece], {0: own}) for own in packed]
            logprobs, entropies = self._logprobs(batches[0])
            for index, batch in zip(trained, batches, strict=True):
                loss = _loss(batch, logprobs, entropies, credits[index].denominator, methods[index], configs[index])
                gradients = torch.autograd.grad(loss, self._parameters, retain_graph=True, allow_unused=True)
                sums[index] += self._sketch(gradients)
        return [own.numpy() for own in sums]

    def _logprobs(self, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies (nats) of the tokens in the loss; [N] each."""
        device = self._parameters[0].device

        def tensor(values: NDArray[np.int64]) -> Tensor:
            return torch.from_numpy(values).to(device)

        position = torch.arange(len(batch), device=device)
        visible = (position <= position[:, None]) & (position[:, None] < tensor(batch.subtree_end))
        logits = self._model(
            input_ids=tensor(batch.tokens)[None],
            attention_mask=visible[None, None],
            position_ids=tensor(batch.depth)[None],
            use_cache=False,
        ).logits[0]
        chosen = np.flatnonzero(batch.in_loss)
        scaled = logits[tensor(batch.predecessor[chosen])].float() / self._temperature
        if batch.kept is not None:  # renormalised over what each token was drawn from
            cut_off = torch.ones(scaled.shape, dtype=torch.bool)
            for row, kept in zip(cut_off, batch.kept[chosen], strict=True):
                row[torch.from_numpy(np.frombuffer(kept, np.int32).astype(np.int64))] = False
            scaled = scaled.masked_fill(cut_off.to(device), -1e20)
        log_pi = scaled.log_softmax(dim=-1)
        logprobs = log_pi.gather(1, tensor(batch.tokens[chosen])[:, None])[:, 0]
        return logprobs, -(log_pi.exp() * log_pi).sum(dim=-1)


def _credit(tree: Tree, method: Method, config: RunConfig) -> Credit:
    [advantages] = method.of_update([tree], config.ib_score)
    credit = credit_nodes(tree, advantages, config.loss.normalization, config.loss.token_weight)
    loss, limit = config.loss, config.rollout.max_new_tokens
    return replace(credit, denominator=loss_denominator([tree], [advantages], [credit], loss.denominator, limit))


def _loss(
    batch: PackedBatch, logprobs: Tensor, entropies: Tensor, denominator: float, method: Method, config: RunConfig
) -> Tensor:
    chosen = np.flatnonzero(batch.in_loss)

    def tensor(values: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(values[chosen]).to(logprobs.device)

    inputs = LossInputs(
        logprobs=logprobs,
        entropies=entropies,
        old_logprobs=logprobs.detach(),
        behaviour_logprobs=logprobs.detach(),
        reference_logprobs=logprobs.detach(),
        run=torch.from_numpy(batch.runs).to(logprobs.device),
        weight=tensor(batch.weight),
        positive=tensor(batch.positive),
        negative=tensor(batch.negative),
        denominator=denominator,
    )
    return method.with_term(make_loss(config.loss))(inputs)[0]
