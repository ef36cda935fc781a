"""The sequences that are being decoded: host-side arrays, one row a sequence, no gaps.

Everything a decode step needs about all sequences is one array expression here, so that its cost in Python does
not grow with the batch. Rows ``0 .. len(batch) - 1`` are in use; when sequences finish, the last ones move into
their places.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nemo_ibtpo.tree.node import FinishReason
from nemo_ibtpo.tree.rollouts import Rollout, RolloutRequest, Unfinished


class RunningBatch:
    """Requests with the tokens sampled for them so far.

    Args:
        rows: most sequences.
        max_length: most tokens of a sequence, its prefix included.

    Attributes:
        tokens: [rows, max_length + 1] token ids; the last column stays 0 and stands in for padding.
        logprobs: [rows, max_length] log-probabilities of the sampled tokens.
        length: [rows] tokens there are.
        prefix_length: [rows] of these, tokens that the request came with.
        limit: [rows] tokens at which the sequence ends at the latest.
        seed: [rows] the requests' seeds.
        kept: of each row in use what its sampled tokens were drawn from, where sampling is truncated.
    """

    def __init__(self, rows: int, max_length: int) -> None:
        self.rows = rows
        self.requests: list[RolloutRequest] = []
        self.tokens = np.zeros((rows, max_length + 1), dtype=np.int64)
        self.logprobs = np.zeros((rows, max_length), dtype=np.float32)
        self.length = np.zeros(rows, dtype=np.int64)
        self.prefix_length = np.zeros(rows, dtype=np.int64)
        self.limit = np.zeros(rows, dtype=np.int64)
        self.seed = np.zeros(rows, dtype=np.uint64)
        self.kept: list[list[bytes]] = []

    def __len__(self) -> int:
        return len(self.requests)

    @property
    def sampled(self) -> NDArray[np.int64]:
        """Tokens sampled so far in each row in use."""
        return (self.length - self.prefix_length)[: len(self)]

    @property
    def last_tokens(self) -> NDArray[np.int64]:
        """The newest token of each row in use."""
        rows = np.arange(len(self))
        return self.tokens[rows, self.length[: len(self)] - 1]

    @property
    def tokens_so_far(self) -> NDArray[np.int64]:
        """The sequences in use, [sequences, longest]; shorter ones are filled up with their first token."""
        length_B1 = self.length[: len(self), None]
        tokens_BT = self.tokens[: len(self), : length_B1.max()]
        return np.where(np.arange(tokens_BT.shape[1]) < length_B1, tokens_BT, tokens_BT[:, :1])

    def add(self, request: RolloutRequest) -> int:
        """Put a request in the next free row and return the row."""
        row = len(self)
        self.requests.append(request)
        self.kept.append([])
        n = len(request.prefix)
        self.tokens[row, :n] = request.prefix
        self.length[row] = self.prefix_length[row] = n
        self.limit[row] = n + request.max_new_tokens
        self.seed[row] = request.seed
        return row

    def append(
        self, tokens_B: NDArray[np.int64], logprobs_B: NDArray[np.float32], kept_B: Sequence[bytes] | None
    ) -> None:
        """Add one sampled token to every row in use, and what it was drawn from if that was not the vocabulary."""
        rows = np.arange(len(self))
        positions = self.length[: len(self)]
        self.tokens[rows, positions] = tokens_B
        self.logprobs[rows, positions] = logprobs_B
        self.length[: len(self)] += 1
        for so_far, kept in zip(self.kept, kept_B or (), strict=False):
            so_far.append(kept)

    def sequence(self, row: int) -> tuple[int, ...]:
        """All tokens of a row."""
        return tuple(self.tokens[row, : self.length[row]].tolist())

    def rollout(self, row: int, finish_reason: FinishReason) -> Rollout:
        """The continuation in a row."""
        sampled = slice(self.prefix_length[row], self.length[row])
        return Rollout(
            request_id=self.requests[row].request_id,
            tokens=tuple(self.tokens[row, sampled].tolist()),
            logprobs=tuple(self.logprobs[row, sampled].tolist()),
            finish_reason=finish_reason,
            kept=tuple(self.kept[row]),
        )

    def unfinished(self, row: int) -> Unfinished:
        """What there is so far of the continuation in a row."""
        so_far = self.rollout(row, "length")
        return Unfinished(so_far.request_id, so_far.tokens, so_far.logprobs)

    def remove(self, rows: list[int]) -> tuple[list[int], list[int]]:
        """Take rows out and close the gaps.

        Returns:
            Rows that moved, and where to. What is kept elsewhere by row must move along.
        """
        gone = set(rows)
        remaining = len(self) - len(gone)
        sources = [row for row in range(remaining, len(self)) if row not in gone]
        targets = sorted(row for row in gone if row < remaining)
        for array in (self.tokens, self.logprobs, self.length, self.prefix_length, self.limit, self.seed):
            array[targets] = array[sources]
        for source, target in zip(sources, targets, strict=True):
            self.requests[target], self.kept[target] = self.requests[source], self.kept[source]
        del self.requests[remaining:], self.kept[remaining:]
        return sources, targets

    def clear(self) -> None:
        """Take every row out."""
        self.requests.clear()
        self.kept.clear()
