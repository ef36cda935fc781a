"""What a token that an arm samples would cost on a cluster, by the planner's model of engines and training.

Models of a study are so small that their seconds say little about large ones, where a decoding step takes as long for
one sequence as for many. So the arms' samplers and methods are planned as they would be for a large model.

Declared: an arm that replaces prompts (``trainer.refill``) pays for their tokens, not for the second wait.
"""

from __future__ import annotations

from collections.abc import Mapping

from nemo_ibtpo.config.loader import compose
from nemo_ibtpo.experiments.training_study.study_file import SimulatedOn, Study
from nemo_ibtpo.planning.assumptions import Assumptions
from nemo_ibtpo.planning.model_shape import find_config
from nemo_ibtpo.planning.planner import Lengths, default_world_size, make_plan


def seconds_per_token(study: Study, on: SimulatedOn) -> Mapping[str, float]:
    """Seconds of a whole step over the tokens sampled in it, for each arm.

    Args:
        study: its arms are planned with their own overrides alone.
        on: the recipe and the lengths.

    Raises:
        UserError: the recipe or its model is not there, or an arm contradicts it.
    """
    found = {}
    for group in study.groups:
        for arm, overrides in group.arms.items():
            config = compose(on.recipe, list(overrides))
            hf_config, _ = find_config(config.model.path, config.model.provider)
            lengths = Lengths(on.prompt_tokens, on.response_tokens)
            plan = make_plan(config, hf_config, default_world_size(config), Assumptions(), lengths)
            found[arm] = plan.step_seconds / plan.work.sampled
    return found
