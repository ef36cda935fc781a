"""The report in a real headless Chromium: it shows what the files hold, and nothing of a model's text runs.

Why it matters: the page shows text that a model wrote. Hand-made trees stand for those of a training run, because
their text has to attack: tags, event handlers, the end of the script element. Not exercised: other browsers.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from advantages_of import ibtpo
from strategies import IB, hand_tree

from nemo_ibtpo.cli import main
from nemo_ibtpo.data.problems import Problem
from nemo_ibtpo.evaluation.result import EvaluationResult, Sample
from nemo_ibtpo.inspection.archive import StepTrees, TreeArchive
from nemo_ibtpo.inspection.records import NodeRecord, TreeRecord, record_tree
from nemo_ibtpo.inspection.run_data import write_questions
from nemo_ibtpo.methods import per_node
from nemo_ibtpo.reporting.metrics import MetricsWriter

ATTACKS = (
    "<script>window.ran = 1; document.title = 'ran'</script>",
    '<img src=x onerror="window.ran = 1">',
    "</script><script>window.ran = 1</script>",
    '"><svg onload="window.ran = 1"></svg>',
    "<!--<script> and {{ran}} ${window.ran = 1} \\u003cscript>",
    "<a href=\"javascript:window.ran = 1\" autofocus onfocus='window.ran = 1'>here</a>",
)
STEPS = (1, 2, 5)
MISSING = "\N{EN DASH}"
SETTINGS = {"beta": IB.beta, "ib_coef": 0.1, "advantage": "ibtpo", "value_estimator": "leaf_mean"}


def attack(tree: TreeRecord, shift: int) -> TreeRecord:
    """The same tree with attacks for all its texts."""
    nodes = tuple(replace(node, text=ATTACKS[(i + shift) % len(ATTACKS)]) for i, node in enumerate(tree.nodes))
    return replace(tree, nodes=nodes, question=ATTACKS[shift % len(ATTACKS)], answer=ATTACKS[0])


def make_run(directory: Path) -> Path:
    """A run of three steps; its first tree meets all rewards, the second has a long first trajectory."""
    tree = hand_tree()
    problem = Problem(ATTACKS[1], "q", "a", "math", {}, (1,))
    known = record_tree(tree, problem, per_node(tree, ibtpo(tree, 0.1, IB)), IB, lambda ids: f"{ids} ")
    archive = TreeArchive(directory)
    for step in STEPS:
        trees = (attack(known, step), replace(attack(known, step + 1), prompt_id=f"other {step}"))
        archive.write(StepTrees(step, SETTINGS, trees), 2**30)
    with MetricsWriter(directory) as writer:
        for step in range(6):
            writer.write(step, {"train/avg_rate": step / 7, "train/cov": np.nan, "val/accuracy": 0.5})
    (directory / "config.yaml").write_text(json.dumps({"name": ATTACKS[0], "ib_score": {"beta": IB.beta}}))
    (directory / "validation").mkdir()
    write_questions(directory, [replace(problem, problem_id="held out")])
    for step, rewards in ((0, (0.0, 1.0)), (4, (1.0, 1.0))):
        samples = [
            Sample("held out", i, (1,), ATTACKS[0], None, "correct" if reward else "wrong", reward, "eos")
            for i, reward in enumerate(rewards)
        ]
        EvaluationResult(tuple(samples), 2, {}).to_jsonl(directory / "validation" / f"step_{step}.jsonl")
    return directory


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("<b onclick=alert(1)>run"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no Chromium with chromedriver here (Debian: apt-get install chromium chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1500,1000",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


@pytest.fixture
def page(browser: Any, run: Path) -> Iterator[Any]:
    """The report, opened from the disk; afterwards nothing may have run, and the console must be clean."""
    assert main(["inspect", str(run)]) == 0
    browser.get((run / "report.html").as_uri())
    yield browser
    assert browser.execute_script("return window.ran") is None
    assert browser.title.startswith("nemo_ibtpo: ")
    assert (
        browser.execute_script("return document.querySelectorAll('main img, main script, main b > svg').length") == 0
    )
    complaints = [entry["message"] for entry in browser.get_log("browser") if entry["level"] != "INFO"]
    assert complaints == []


def look(page: Any, css: str) -> Any:
    """The element, once it is there: trees are unpacked in the background."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(page, 30).until(lambda p: p.find_element(By.CSS_SELECTOR, css))


def look_all(page: Any, css: str) -> list[Any]:
    look(page, css)
    found: list[Any] = page.find_elements("css selector", css)
    return found


def open_tree(page: Any, run: Path, step: int, number: int) -> TreeRecord:
    page.execute_script(f"location.hash = 'tree/0/{step}/{number}'")
    look(page, f'.canvas[data-tree="0/{step}/{number}"] .node')
    return TreeArchive(run).read(step).trees[number]


def shown_fields(page: Any) -> dict[str, str]:
    return {e.get_attribute("data-field"): e.get_attribute("textContent") for e in look_all(page, "[data-field]")}


def as_shown(node: NodeRecord) -> dict[str, str]:
    """What the details say of a node; numbers as JavaScript writes those of the file."""
    columns = {field.name: getattr(node, field.name) for field in fields(NodeRecord)}
    del columns["parent"]
    return {name: re.sub(r"\.0$", "", str(v)) for name, v in columns.items() if v is not None}


def test_a_click_shows_the_scores_of_the_file(page: Any, run: Path) -> None:
    tree = open_tree(page, run, 2, 1)
    assert [e.get_attribute("textContent")[:1] for e in look_all(page, ".leaf .reward")] == ["✓", "✗", "✗", "✓"]
    for i, node in enumerate(tree.nodes):
        look(page, f'[data-node="{i}"]').click()
        shown = {name: text for name, text in shown_fields(page).items() if text != MISSING}
        expected = as_shown(node)
        shown["tokens"] = shown["tokens"].partition(",")[0]
        if i == 0:
            del expected["draws"]
        assert shown == expected
        assert look(page, ".response .here, .response" if i else "pre.text").get_attribute("textContent")


def test_keys_move_and_search_finds(page: Any, run: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    tree = open_tree(page, run, 1, 0)
    canvas = look(page, ".canvas")

    def press(*keys: str) -> int:
        look(page, ".node.chosen").send_keys(*keys)
        return int(look(page, ".node.chosen").get_attribute("data-node"))

    look(page, '[data-node="0"]').click()
    first = next(i for i, node in enumerate(tree.nodes) if node.parent == 0)
    assert press(Keys.ARROW_RIGHT) == first
    assert press(Keys.ARROW_LEFT) == 0
    leaf = press(Keys.END)
    assert tree.nodes[leaf].finish_reason is not None
    assert press(Keys.ARROW_DOWN) != leaf
    assert press(Keys.HOME) == 0
    look(page, "#search").send_keys("onerror")
    matching = [i for i, node in enumerate(tree.nodes) if "onerror" in node.text]
    assert [int(e.get_attribute("data-node")) for e in look_all(page, ".node.found")] == matching
    look(page, "#search").send_keys(Keys.CONTROL + "a", Keys.BACKSPACE)
    assert page.find_elements("css selector", ".node.found") == []
    assert canvas.get_attribute("role") == "tree"
    press("j")
    look(page, '[data-tree="0/1/1"] .node')
    page.switch_to.active_element.send_keys("j")  # the new tree has the focus
    look(page, '[data-tree="0/2/0"] .node')


def test_other_constants_give_other_scores_and_come_back(page: Any, run: Path) -> None:
    tree = open_tree(page, run, 1, 0)
    from nemo_ibtpo.tree.ib_score import ib_scores

    look(page, '[data-node="1"]').click()
    beta = look(page, "#beta")
    beta.clear()
    beta.send_keys("2")
    expected = ib_scores(hand_tree(), replace(IB, beta=2.0))[1]
    assert float(shown_fields(page)["ib_score"]) == pytest.approx(expected, rel=1e-4)
    beta.clear()
    beta.send_keys(str(IB.beta))
    assert float(shown_fields(page)["ib_score"]) == tree.nodes[1].ib_score


def test_curves_and_the_prompt_table(page: Any, run: Path) -> None:
    page.execute_script("location.hash = 'curves'")
    names = [e.text.split()[0] for e in look_all(page, ".panel h3")]
    assert {"val/accuracy", "train/avg_rate", "train/cov"} == set(names)
    page.execute_script("location.hash = 'prompts'")
    questions = [e.get_attribute("textContent") for e in look_all(page, "td.question")]
    assert len(questions) == 1 + len(STEPS)  # one prompt is met in every step
    assert set(questions) <= set(ATTACKS)
    look(page, "table.prompts th:nth-child(2) button").click()
    counts = [int(e.text) for e in look_all(page, "table.prompts td:nth-child(2)")]
    assert counts == sorted(counts, reverse=True) == [3, 1, 1, 1]
    look(page, ".bar option[value=validation]").click()
    cells = [e.text for e in look_all(page, "table.prompts tbody td")]
    assert cells[1:] == ["2", "4", "50.0 %", "100.0 %", "+50 pts", "50.0 %"]
    look(page, ".bar option[value=trees]").click()
    look(page, "td.question a").click()
    look(page, '.canvas [data-node="5"]')


def test_a_foreign_handler_would_not_run(page: Any) -> None:
    """The policy holds even where the page's own code would have a hole; checked by making one."""
    page.execute_script(
        "document.body.insertAdjacentHTML('beforeend', '<img id=hole src=x onerror=\"window.ran = 1\">')"
    )
    look(page, "#hole")
    page.execute_script("return new Promise((done) => setTimeout(done, 300))")
    refused = [entry["message"] for entry in page.get_log("browser")]  # empties the log
    assert any("Content Security Policy" in message for message in refused)
