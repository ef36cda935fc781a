"""What a report does to the page it goes into, and that results survive their file.

Why it matters: the page is written by people and by a program; neither may lose the other's text.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from study_results import run

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.experiments.training_study.run_results import read_results, write_results
from nemo_ibtpo.experiments.training_study.study_file import Group, Study, Task
from nemo_ibtpo.experiments.training_study.study_report import replace_section, report

PAGE = Path("results.md")


def study(directory: Path) -> Study:
    tasks = (Task("t", Path("t.yaml"), {}, Path("model")), Task("u", Path("u.yaml"), {}, Path("model")))
    groups = (Group("arms", (1, 2), "a", {"a": [], "b": []}), Group("ablations", (1,), "b", {"c": []}))
    return Study("tiny", directory / "runs", tasks, groups, (), None, None)


def test_results_survive_their_file(tmp_path: Path) -> None:
    results = [run("a", 1, [0.25, 0.5]), run("b", 1, [0.0, 1.0])]
    write_results(results, tmp_path / "made" / "r.jsonl")
    assert read_results(tmp_path / "made" / "r.jsonl") == results
    (tmp_path / "r.jsonl").write_text('{"task": 1}\n')
    with pytest.raises(UserError, match="does not hold the results of a study"):
        read_results(tmp_path / "r.jsonl")
    with pytest.raises(UserError, match="cannot be read"):
        read_results(tmp_path / "nowhere")


def test_a_page_keeps_what_people_wrote(tmp_path: Path) -> None:
    runs = [run(arm, s, [0.1 * s, 0.5], task=task) for arm in ("a", "b", "c") for s in (1, 2) for task in ("t", "u")]
    write_results(runs, tmp_path / "gathered.jsonl")
    page = tmp_path / "results.md"
    page.write_text("# Ours\n<!-- study tiny: begin -->\nold\n<!-- study tiny: end -->\nOurs too\n")
    written = report(study(tmp_path), tmp_path / "gathered.jsonl", tmp_path)
    text = page.read_text()
    assert (
        text.startswith("# Ours\n<!-- study tiny: begin -->\n") and text.endswith("Ours too\n") and "old" not in text
    )
    for heading in ("**Arms, t**", "**Arms, all tasks**", "**Ablations, u**", "| after, minus a |", "| c | 2 |"):
        assert heading in text
    images = [path for path in written if path.suffix == ".png"]
    assert len(images) == 8 and all(path.read_bytes().startswith(b"\x89PNG") for path in images)
    assert f"(images/{images[-1].name})" in text and page in written
    report(study(tmp_path), tmp_path / "results" / "tiny.jsonl", tmp_path)
    assert page.read_text() == text, "drawn again from the gathered results it is the same"


def test_a_page_without_marks_is_refused() -> None:
    for text in ("", "<!-- study s: end -->\n<!-- study s: begin -->", "<!-- study other: begin -->"):
        with pytest.raises(UserError, match=r"results.md needs one line '<!-- study s: begin -->'"):
            replace_section(text, "s", "new", PAGE)
