"""What a launcher has to know of a run before it starts one. No torch.

    python -m nemo_ibtpo.launch.job_plan --world-size 16 recipe=<name or path> [key=value ...]

Refuses, as training would, what cannot run on that many ranks; exit status 2 and one line. Otherwise the last three
lines of standard output are the output directory, the actor's device and ``complete`` or ``open``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from nemo_ibtpo.checkpoints.status import finished_steps
from nemo_ibtpo.config.batch_plan import batch_plan
from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.exp_manager import is_new_each_time
from nemo_ibtpo.config.hydra_flags import add_hydra_flags, arguments_with_recipe
from nemo_ibtpo.config.loader import composition, recipe_and_overrides
from nemo_ibtpo.config.mixtures import all_parts
from nemo_ibtpo.config.validation import validate
from nemo_ibtpo.data.sources import check_sources


def main(argv: Sequence[str]) -> int:
    """Print the plan; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m nemo_ibtpo.launch.job_plan", allow_abbrev=False)
    parser.add_argument("--world-size", type=int, required=True, metavar="N", help="ranks of the run")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as nemo-ibtpo train takes them")
    add_hydra_flags(parser)
    arguments = parser.parse_intermixed_args(argv)  # overrides may stand among the options
    try:
        overrides = arguments_with_recipe(arguments.config_path, arguments.config_name, arguments.overrides)
        request = composition(*recipe_and_overrides(overrides))
        asked = request.asked(request.compose())
        block = asked.exp_manager
        if block is not None and is_new_each_time(block):
            raise UserError(
                "exp_manager uses a new directory at each start, and a job that is queued again "
                "would never go on: set exp_manager.resume_if_exists=true and resume_ignore_no_checkpoint=true"
            )
        config = asked.at_this_start()
        validate(config, "train", arguments.world_size)
        check_sources(*(part.dataset for part in all_parts(config.data)))
    except UserError as error:
        print(f"nemo-ibtpo: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    complete = finished_steps(Path(config.output_dir), config.trainer) is not None
    print(batch_plan(config, arguments.world_size))
    print(config.output_dir, config.actor.device, "complete" if complete else "open", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
