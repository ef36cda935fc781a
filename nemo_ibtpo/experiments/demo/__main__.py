"""``python -m nemo_ibtpo.experiments.demo``: `make demo`, and `make demo-smollm2` with ``--model smollm2``."""

from __future__ import annotations

import sys

from nemo_ibtpo.experiments.demo.driver import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
