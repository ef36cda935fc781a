"""Weights gathered on every rank, one at a time, into an engine in the rank's own process."""

from __future__ import annotations

from nemo_ibtpo.rollout.transport.protocol import TakesTensors, WeightSource


class GatheredTransport:
    """Gathers one full tensor at a time and copies it into the engine; for models that fit a rank whole."""

    def __init__(self) -> None:
        self._engine: TakesTensors | None = None

    def attach(self, engine: TakesTensors) -> None:
        """See :class:`~nemo_ibtpo.rollout.transport.protocol.WeightTransport`."""
        self._engine = engine

    def publish(self, source: WeightSource) -> None:
        """See :class:`~nemo_ibtpo.rollout.transport.protocol.WeightTransport`."""
        weights = source.named_weights()
        if self._engine is not None:
            self._engine.update_weights(weights)
        else:
            for _ in weights:  # this rank's part in the collective
                pass

    def close(self) -> None:
        """Nothing to release."""
