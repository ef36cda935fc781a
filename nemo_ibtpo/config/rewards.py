"""What is wrong about ``reward``, as far as it can be known without importing a function."""

from __future__ import annotations

from pathlib import Path

from nemo_ibtpo.config.refusals import refuse_if
from nemo_ibtpo.config.schema import RewardConfig


def check_reward(reward: RewardConfig) -> None:
    """Check what judges responses.

    Raises:
        UserError: for the first thing that is wrong.
    """
    refuse_if(
        reward.function is not None and bool(reward.parts),
        "reward.function and reward.parts are both set; make the function one of the parts",
    )
    refuse_if(
        bool(reward.options) and reward.function is None,
        "reward.options are of reward.function, which is null; a part has options of its own",
    )
    if reward.function is not None:
        _check_function("reward.function", reward.function)
    for name, part in reward.parts.items():
        key = f"reward.parts.{name}"
        known = {"function", "weight", "options"}
        refuse_if(
            not isinstance(part, dict) or not {"function", "weight"} <= set(part) <= known,
            f"{key}={part}: a part is a mapping with function, weight and perhaps options",
        )
        weight, options = part["weight"], part.get("options", {})
        refuse_if(
            isinstance(weight, bool) or not isinstance(weight, int | float) or weight <= 0,
            f"{key}.weight={weight} must be a number above 0",
        )
        refuse_if(not isinstance(options, dict), f"{key}.options={options} must be a mapping of names to values")
        if part["function"] != "verifier":
            _check_function(f"{key}.function", part["function"])


def _check_function(key: str, function: object) -> None:
    where, _, name = str(function).rpartition(":")
    refuse_if(
        not isinstance(function, str) or not where or not name.isidentifier(),
        f"{key}={function}: write it as path/to/file.py:name or package.module:name",
    )
    refuse_if(
        where.endswith(".py") and not Path(where).expanduser().is_file(),
        f"{key}={function}: there is no file {where} (relative paths start at {Path.cwd()})",
    )
