"""How long responses are taken to be: log-normal, cut at the longest allowed, with a given mean."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import cached_property

from nemo_ibtpo.planning.simulated_engine import LengthOf
from nemo_ibtpo.tree.rollouts import RolloutRequest


@dataclass(frozen=True)
class ResponseLengths:
    """Lengths in tokens.

    Attributes:
        mean: of whole responses, the longest ones cut to ``cap``.
        cap: most tokens of a response; with a mean of as much all responses are that long.
        sigma: of the logarithm of a length.
        branch_share: mean length of a branch's continuation over that of a whole response.
    """

    mean: float
    cap: int
    sigma: float
    branch_share: float = 0.5

    def draw(self, rng: random.Random, *, is_branch: bool) -> float:
        """Tokens of a response, or of a branch, which samples a share of one, uniform about ``branch_share``."""
        whole = self.cap if self.mean >= self.cap else min(self.cap, rng.lognormvariate(self._mu, self.sigma))
        if not is_branch:
            return whole
        width = min(self.branch_share, 1 - self.branch_share)
        return whole * rng.uniform(self.branch_share - width, self.branch_share + width)

    @cached_property
    def _mu(self) -> float:
        """Mean of the logarithm, so that cut responses have the mean."""
        low, high = math.log(self.mean) - self.sigma**2, math.log(self.cap) + 8 * self.sigma
        while high - low > 1e-6:
            middle = (low + high) / 2
            low, high = (middle, high) if self._cut_mean(middle) < self.mean else (low, middle)
        return low

    def _cut_mean(self, mu: float) -> float:
        def below(z: float) -> float:
            return 0.5 * (1 + math.erf(z / math.sqrt(2)))

        z = (math.log(self.cap) - mu) / self.sigma
        return math.exp(mu + self.sigma**2 / 2) * below(z - self.sigma) + self.cap * (1 - below(z))


def length_in_quanta(lengths: ResponseLengths, prompt: int, quantum: int) -> LengthOf:
    """What simulated engines ask for: of each request, by its seed; one that goes on behind the prompt is a branch.

    Args:
        lengths: in tokens.
        prompt: quanta of each prompt.
        quantum: tokens.
    """

    def length_of(request: RolloutRequest) -> int:
        drawn = lengths.draw(random.Random(request.seed), is_branch=len(request.prefix) > prompt)
        return max(1, round(drawn / quantum))

    return length_of
