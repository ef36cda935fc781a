"""All ranks stop together, though a signal may have reached some of them only.

Safe points are the beginning of a step, sampling, and the moment before a step's first update.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from nemo_ibtpo.checkpoints.stopping import StopRequest, reason
from nemo_ibtpo.collectives import largest
from nemo_ibtpo.tree.rollouts import Rollout, RolloutRequest, RolloutSource, Unfinished


class StoppedError(Exception):
    """The run stops, to be started again; the message says why."""


class StopConsensus:
    """Turns requests to stop into one decision of all ranks.

    Args:
        request: what this rank was asked.
    """

    def __init__(self, request: StopRequest) -> None:
        self._request = request

    def raise_if_asked(self) -> None:
        """A safe point; a collective over all ranks.

        Raises:
            StoppedError: a rank was asked to stop; on all of them.
        """
        if code := largest(self._request.code):
            raise StoppedError(reason(code))

    @contextmanager
    def while_sampling(self, source: RolloutSource) -> Iterator[RolloutSource]:
        """Within the context this rank gives up sampling when it is asked to stop.

        If one rank gives up, all ranks learn of it at the end of the block, before they wait for its results; the end
        is a collective over all ranks.

        Raises:
            StoppedError: a rank was asked to stop; on all of them.
        """
        with suppress(StoppedError):
            yield _InterruptibleSource(source, self._request)
        self.raise_if_asked()


class _InterruptibleSource:
    """A rollout source that gives up when this rank is asked to stop."""

    def __init__(self, source: RolloutSource, request: StopRequest) -> None:
        self._source = source
        self._request = request

    def submit(self, requests: Sequence[RolloutRequest]) -> None:
        """Accept requests."""
        self._source.submit(requests)

    def poll(self) -> list[Rollout]:
        """Rollouts that have finished.

        Raises:
            StoppedError: this rank was asked to stop, and the others do not know of it yet.
        """
        if self._request.code:
            raise StoppedError(reason(self._request.code))
        return self._source.poll()

    def progress(self, at_least: Mapping[Hashable, int]) -> Mapping[Hashable, int]:
        """How far requests are."""
        return self._source.progress(at_least)

    def cut(self, at_least: Mapping[Hashable, int]) -> list[Unfinished]:
        """End all requests."""
        return self._source.cut(at_least)
