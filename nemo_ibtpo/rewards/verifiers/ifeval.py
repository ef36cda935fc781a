"""Verifier ``ifeval``: a response follows every instruction of its prompt (IFEval's prompt-level strict accuracy).

The checks are lm-evaluation-harness' (extra ``eval``). Three things are done about them here:

- ``lm_eval.tasks`` is entered without its package, which would import the whole harness;
- nothing is downloaded: two instructions need nltk's ``punkt_tab`` data and are refused by ``gold_defect`` where it
  is not installed;
- langdetect draws at random; its seed is fixed, so that a response always gets the same verdict.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from nemo_ibtpo.data.problems import Problem
from nemo_ibtpo.rewards.verifiers import Verdict

NEEDS_PUNKT = frozenset({"length_constraints:number_sentences", "change_case:capital_word_frequency"})
HOW_TO_INSTALL = "verifier ifeval needs lm-eval: pip install 'nemo-ibtpo[eval]'"


def is_installed() -> bool:
    """Whether the checks can be imported."""
    return all(find_spec(name) is not None for name in ("lm_eval", "nltk", "langdetect", "immutabledict"))


def _load_checks() -> Any:
    harness = find_spec("lm_eval")
    assert harness is not None and harness.submodule_search_locations is not None
    import langdetect
    import nltk

    tasks = ModuleType("lm_eval.tasks")
    tasks.__path__ = [str(Path(harness.submodule_search_locations[0]) / "tasks")]
    sys.modules.setdefault("lm_eval.tasks", tasks)
    nltk.download = lambda *_args, **_kwargs: False
    langdetect.DetectorFactory.seed = 0
    langdetect.detector_factory.init_factory()  # reads its language profiles, which takes a second
    from lm_eval.tasks.ifeval import utils

    return utils


_CHECKS = _load_checks() if is_installed() else None  # seconds, which belong to no verification


def verify(answer: str, problem: Problem) -> Verdict:
    """Judge the whole response ``answer``."""
    if _CHECKS is None:
        raise RuntimeError(HOW_TO_INSTALL)
    try:
        followed = _CHECKS.test_instruction_following_strict(_example(problem), answer)
    except Exception:  # not every check foresees every text
        return "unparsable"
    return "correct" if followed.follow_all_instructions else "wrong"


def gold_defect(problem: Problem) -> str | None:
    """What the installation lacks for the problem, or what it does not know of it."""
    if _CHECKS is None:
        return HOW_TO_INSTALL
    wanted = problem.metadata["instruction_id_list"]
    if unknown := sorted(set(wanted) - set(_CHECKS.instructions_registry.INSTRUCTION_DICT)):
        return f"unknown instruction {unknown[0]}"
    if needed := sorted(NEEDS_PUNKT.intersection(wanted)):
        import nltk

        try:
            nltk.data.find("tokenizers/punkt_tab")
        except LookupError:
            return f"{needed[0]} needs nltk's data (python -m nltk.downloader punkt_tab)"
    try:
        _CHECKS.test_instruction_following_strict(_example(problem), "any response")
    except (TypeError, ValueError, KeyError) as error:
        return f"the arguments of its instructions are wrong: {error}"
    return None


def _example(problem: Problem) -> Any:
    assert _CHECKS is not None
    metadata = problem.metadata
    return _CHECKS.InputExample(0, metadata["instruction_id_list"], problem.question, metadata["kwargs"])
