"""The page as a text: what came from data stays data, and only the page's own script may run.

Why this matters: it is the part of the promise that needs no browser; ``tests/e2e/test_report_in_browser.py`` has the
rest. Not exercised: how it looks.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import pytest
from advantages_of import ibtpo
from strategies import IB, hand_tree

from nemo_ibtpo.cli import main
from nemo_ibtpo.data.problems import Problem
from nemo_ibtpo.inspection.archive import StepTrees, TreeArchive
from nemo_ibtpo.inspection.records import record_tree
from nemo_ibtpo.inspection.run_data import evenly
from nemo_ibtpo.methods import per_node
from nemo_ibtpo.reporting.metrics import MetricsWriter

EVIL = "</script><script>evil()</script>\x1b[31m"


class Scripts(HTMLParser):
    """The script elements: attributes and content."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[dict[str, str | None], str]] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag == "script"
        if self._inside:
            self.found.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            attributes, content = self.found[-1]
            self.found[-1] = attributes, content + data


@pytest.fixture
def run(tmp_path: Path) -> Path:
    tree, directory = hand_tree(), tmp_path / "run"
    problem = Problem("id", EVIL, EVIL, "math", {}, (1,))
    record = record_tree(tree, problem, per_node(tree, ibtpo(tree, 0.1, IB)), IB, lambda ids: EVIL + str(ids))
    for step in range(1, 9):
        TreeArchive(directory).write(StepTrees(step, {"beta": 5.0}, (record,)), 2**30)
    with MetricsWriter(directory) as writer:
        writer.write(1, {"train/avg_rate": 0.5})
    return directory


def test_scripts_of_the_page(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(run)]) == 0
    assert f"wrote {run / 'report.html'}: 8 trees" in capsys.readouterr().out
    page = (run / "report.html").read_text()
    parser = Scripts()
    parser.feed(page)
    data, *trees, script = parser.found
    assert json.loads(data[1])["prompts"]["id"]["question"] == EVIL
    assert [attributes["id"] for attributes, _ in trees] == [f"trees-0-{step}" for step in range(1, 9)]
    assert base64.b64decode(trees[3][1]) == TreeArchive(run).path(4).read_bytes()
    assert EVIL in json.loads(gzip.decompress(base64.b64decode(trees[3][1])).splitlines()[1])["nodes"]["text"][1]
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    assert "default-src 'none'" in page and "unsafe" not in page.partition("<style>")[0]
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)


def test_the_script_parses_no_html_and_no_code() -> None:
    for file in (resources.files("nemo_ibtpo.inspection") / "static").iterdir():
        if file.name.endswith(".js"):
            forbidden = r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function|\bfetch\(|XMLHttp"
            assert not re.search(forbidden, file.read_text("utf-8")), file.name


def test_of_too_many_trees_steps_are_taken_evenly(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evenly(range(1, 101), dict.fromkeys(range(1, 101), 10), 200) == list(range(5, 101, 5))
    size = TreeArchive(run).path(1).stat().st_size
    assert main(["inspect", str(run), "--tree-mib", str(4.5 * size / 2**20)]) == 0
    assert "the trees of 4 steps found no room" in capsys.readouterr().out
    assert re.findall(r'id="trees-0-(\d)"', (run / "report.html").read_text()) == ["2", "4", "6", "8"]


def test_a_tree_on_the_terminal(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["inspect", str(run), "--terminal"]) == 0
    assert "steps with trees: 1, 2, 3, 4, 5, 6, 7, 8" in capsys.readouterr().out
    assert main(["inspect", str(run), "--terminal", "--step", "4", "--tree", "1"]) == 0
    told = capsys.readouterr().out
    assert told.count("</script><script>evil()") == 1 + len(hand_tree().nodes)  # the answer and every step
    assert "\x1b" not in told  # what a terminal would obey
    assert "V 0.67 IB -0.90" in told  # step a of test_ib_score.py


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{run}/no"], "there is no such directory"),
        (["{run}", "{run}/"], "a run is named twice"),
        (["{run}", "--tree", "1"], "--tree goes with --terminal"),
        (["{run}", "--tree-mib", "0"], "it must be above 0"),
        (["{run}", "--output", "{run}/no/x.html"], "there is no directory"),
        (["{run}", "--terminal", "--tree", "2"], "step 8 has the trees 1 to 1"),
        (["{run}", "--terminal", "--step", "9"], "steps with trees: 1, 2"),
        (["{run}/trees"], "metrics.jsonl: there is no such file"),
        (["{run}/trees", "--terminal"], "holds no trees"),
    ],
)
def test_mistakes_are_told(run: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", *(word.format(run=run) for word in words)]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1
