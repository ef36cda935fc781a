"""When a response ends: end-of-sequence token, stop string, or length limit, in this order of precedence.

Stop strings are looked for in the text of the sampled tokens only, never across the border to the prefix. Decoding
text is by far the dearest part of a step, so it is done only for rows whose newest token may complete a stop
string at all: its own text holds the string's last character, or is no whole character.
"""

from __future__ import annotations

import numpy as np
from transformers import PreTrainedTokenizerBase

from nemo_ibtpo.rollout.embedded.running_batch import RunningBatch
from nemo_ibtpo.rollout.engine import SamplingParams
from nemo_ibtpo.tree.node import FinishReason

_INCOMPLETE = "\ufffd"


class StopRules:
    """The stop conditions of one set of sampling parameters.

    Args:
        params: holds the stop strings and end-of-sequence ids.
        tokenizer: decodes the sampled tokens.
        vocab_size: of the model; ids beyond the tokenizer's have no text.
    """

    def __init__(self, params: SamplingParams, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._stop = params.stop
        # A token that has text holds at least one byte of it.
        self._window = max((len(text.encode()) for text in params.stop), default=0)
        self._is_eos = np.zeros(vocab_size, dtype=np.bool_)
        self._is_eos[list(params.eos_token_ids)] = True
        self._has_text = np.zeros(vocab_size, dtype=np.bool_)
        self._may_complete = np.zeros(vocab_size, dtype=np.bool_)
        if params.stop:
            self._read_vocabulary(vocab_size)

    def finished_rows(self, batch: RunningBatch) -> dict[int, FinishReason]:
        """The rows that end with the token they were given last, and why."""
        last_B = batch.last_tokens
        full_B = batch.length[: len(batch)] == batch.limit[: len(batch)]
        reasons: dict[int, FinishReason] = dict.fromkeys(np.flatnonzero(full_B).tolist(), "length")
        for row in np.flatnonzero(self._may_complete[last_B]).tolist():
            if self._ends_with_stop(batch, row):
                reasons[row] = "stop"
        reasons |= dict.fromkeys(np.flatnonzero(self._is_eos[last_B]).tolist(), "eos")
        return reasons

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _read_vocabulary(self, vocab_size: int) -> None:
        clues = {text[-1] for text in self._stop} | {_INCOMPLETE}
        for token in range(min(vocab_size, len(self._tokenizer))):
            text = self._decode([token, token])  # twice, because some tokenizers drop a text's leading space
            self._has_text[token] = bool(text)
            self._may_complete[token] = any(clue in text for clue in clues)

    def _ends_with_stop(self, batch: RunningBatch, row: int) -> bool:
        prefix_length = int(batch.prefix_length[row])
        sampled = batch.tokens[row, prefix_length : batch.length[row]]
        sampled = sampled[self._has_text[sampled]]
        # One token of context before the window, for the leading space again.
        recent = [int(batch.tokens[row, prefix_length - 1]), *sampled.tolist()][-self._window - 1 :]
        text = self._decode(recent)[len(self._decode(recent[:1])) :]
        return any(stop in text for stop in self._stop)
