"""How a report with many trees behaves in a browser: its size, how long it takes to open, and to show another tree.

Trees of 12 trajectories of about 40 steps of random words are kept as a run keeps them, eight a step, and the report
of them is opened in headless Chromium, which has to be installed together with chromedriver and selenium. Trees come
again under other steps, to save the time of growing them; the report does not know.

    python benchmarks/report_in_browser.py

The last line is JSON: trees, MiB, seconds to open the page, and the median and the longest of showing a tree.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from measure import describe, report
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
from tree_records import VOCAB, make_tokenizer
from workloads import IB_SCORE, METHOD, SHAPES, grow_tree

from nemo_ibtpo.data.problems import Problem
from nemo_ibtpo.inspection.archive import StepTrees, TreeArchive
from nemo_ibtpo.inspection.records import TreeRecord, record_tree
from nemo_ibtpo.inspection.report_page import write_report
from nemo_ibtpo.inspection.run_data import read_runs
from nemo_ibtpo.methods import make_method, per_node
from nemo_ibtpo.reporting.metrics import MetricsWriter

_PER_STEP = 8
_GROWN = 24
_SETTINGS = {"beta": IB_SCORE.beta, **METHOD}


def make_records(rng: np.random.Generator) -> list[TreeRecord]:
    """Trees of the paper's shape with steps of 25 tokens."""
    shape = replace(SHAPES["paper"], step_tokens=25)
    strategy = shape.strategy("ib")
    trees = [grow_tree(shape, strategy, rng, prompt_id=f"{i:02}", vocab_size=VOCAB) for i in range(_GROWN)]
    decode = partial(make_tokenizer(rng).decode, clean_up_tokenization_spaces=False)
    return [
        record_tree(tree, Problem(tree.prompt_id, "?", "", "math", {}, (1,)), per_node(tree, own), IB_SCORE, decode)
        for tree, own in zip(trees, make_method(METHOD).of_update(trees, IB_SCORE), strict=True)
    ]


def make_run(directory: Path, steps: int, rng: np.random.Generator) -> None:
    """What a run of so many steps leaves for the report."""
    records, archive = make_records(rng), TreeArchive(directory)
    with MetricsWriter(directory) as writer:
        for step in range(1, steps + 1):
            chosen = [records[(step * _PER_STEP + i) % _GROWN] for i in range(_PER_STEP)]
            archive.write(StepTrees(step, dict(_SETTINGS), tuple(chosen)), 2**40)
            writer.write(step, {"train/avg_rate": float(rng.random())})


def open_browser() -> webdriver.Chrome:
    """Headless Chromium."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1600,900",
    ):
        options.add_argument(flag)
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=125)
    parser.add_argument("--shown", type=int, default=20, help="trees to show")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        make_run(directory, options.steps, rng)
        page = directory / "report.html"
        written = write_report(read_runs([directory]), page, 2**40)
        mib = page.stat().st_size / 2**20
        browser = open_browser()
        try:
            started = time.perf_counter()
            browser.get(page.as_uri())
            open_s = time.perf_counter() - started
            seconds = []
            for _ in range(options.shown):
                address = f"0/{rng.integers(1, options.steps + 1)}/{rng.integers(_PER_STEP)}"
                started = time.perf_counter()
                browser.execute_script(f"location.hash = 'tree/{address}'")
                there = (By.CSS_SELECTOR, f'[data-tree="{address}"] .node')
                WebDriverWait(browser, 60, 0.01).until(lambda page, where=there: page.find_element(*where))
                seconds.append(time.perf_counter() - started)
        finally:
            browser.quit()
    print(f"{written.trees} trees, {mib:.1f} MiB: opened in {open_s:.2f} s, a tree in {np.median(seconds):.2f} s")
    report(
        trees=written.trees,
        mib=mib,
        open_s=open_s,
        show_s=float(np.median(seconds)),
        show_longest_s=max(seconds),
        device=describe(torch.device("cpu")),
    )


if __name__ == "__main__":
    main()
