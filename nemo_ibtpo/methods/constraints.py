"""What several methods cannot be combined with."""

from __future__ import annotations

from nemo_ibtpo.config.refusals import refuse_if
from nemo_ibtpo.config.schema import SamplerConfig


def refuse_chains(method: str, compares: str, sampler: SamplerConfig) -> None:
    """Refuse a sampler that never branches.

    Args:
        method: name of the method.
        compares: what it compares, and why there is no such thing where nothing branches.
        sampler: how trees grow.

    Raises:
        UserError: trees have no branches.
    """
    refuse_if(
        sampler.name == "independent",
        f"method {method} compares {compares}: sampler.name=independent never branches; choose another sampler, or "
        "method=grpo",
    )
