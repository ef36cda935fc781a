"""Program: writes the entries of a reasoning-gym task to standard output, one JSON object a line.

Run by ``data.sources`` in a process of its own, with a fixed hash seed: several tasks (word_ladder and
polynomial_multiplication among them) draw from sets of strings, so that the same seed gives other problems in
another process unless Python's string hashes are the same. It also keeps reasoning-gym's many imports out of
the training process. Reads ``{"task", "options", "size", "seed"}`` from standard input; what the user can mend
is answered by the single line ``{"error": ...}``.
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Iterator
from typing import Any


def main() -> None:
    """Generate the entries that standard input asks for."""
    output, sys.stdout = sys.stdout, sys.stderr  # some tasks print while they generate
    for row in _rows(json.load(sys.stdin)):
        # What JSON does not know becomes text. Metadata that a verifier needs in its own type shows as a task
        # that does not accept its own gold answers (rewards.verifiers.reasoning_gym.gold_defect).
        print(json.dumps(row, default=str), file=output)


def _rows(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    from reasoning_gym.factory import DATASETS, create_dataset

    task = spec["task"]
    if task not in DATASETS:
        close = difflib.get_close_matches(task, DATASETS, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else f"tasks: {', '.join(sorted(DATASETS))}"
        yield {"error": f"unknown reasoning-gym task {task!r}; {hint}"}
        return
    known = sorted(set(DATASETS[task][1].__dataclass_fields__) - {"seed", "size"})
    if unknown := sorted(set(spec["options"]) - set(known)):
        yield {"error": f"reasoning-gym task {task!r} has no option {unknown[0]!r}; it has: {', '.join(known)}"}
        return
    try:
        dataset = create_dataset(task, **spec["options"], size=spec["size"], seed=spec["seed"])
    except Exception as error:  # tasks check their options with assert, ValueError and what else comes up
        reason = " ".join(str(error).split()) or type(error).__name__
        yield {"error": f"reasoning-gym task {task!r} refuses its options {spec['options']}: {reason}"}
        return
    for index in range(spec["size"]):
        yield dataset[index]


if __name__ == "__main__":
    main()
