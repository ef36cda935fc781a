"""What a launcher has to know of a run before it starts one. No torch.

    python -m nemo_ibtpo.launch.plan --world-size 16 recipe=<name or path> [key=value ...]

Refuses, as training would, what cannot run on that many ranks; exit status 2 and one line. Otherwise the last three
lines of standard output are the output directory, the actor's device and ``complete`` or ``open``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from nemo_ibtpo.checkpoints.status import finished_steps
from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.loader import compose_words
from nemo_ibtpo.config.plan import batch_plan
from nemo_ibtpo.config.validation import validate


def main(argv: Sequence[str]) -> int:
    """Print the plan; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m nemo_ibtpo.launch.plan", allow_abbrev=False)
    parser.add_argument("--world-size", type=int, required=True, metavar="N", help="ranks of the run")
    parser.add_argument("words", nargs="*", metavar="key=value", help="as nemo-ibtpo train takes them")
    arguments = parser.parse_args(argv)
    try:
        config = compose_words(arguments.words)
        validate(config, arguments.world_size)
    except UserError as error:
        print(f"nemo-ibtpo: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    finished = finished_steps(Path(config.output_dir))
    complete = finished is not None and finished >= config.trainer.max_steps
    print(batch_plan(config, arguments.world_size))
    print(config.output_dir, config.actor.device, "complete" if complete else "open", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
