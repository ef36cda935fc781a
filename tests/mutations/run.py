"""Whether the tests notice mistakes: each entry of ``mutations.yaml`` is made in a copy, and its test has to fail.

    python tests/mutations/run.py [--only TEXT] [--fast]

``--only`` takes mutations whose name or file has the text, ``--fast`` leaves out those whose test starts ranks. Every
test passes first without a mutation. Prints a line for each; the exit status is 1 if one is not noticed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("nemo_ibtpo", "tests", "conf", "recipes", "docs", "pyproject.toml")


class Mutation(NamedTuple):
    """A mistake: in ``file`` the text ``old``, which is there once, becomes ``new``; ``test`` fails then."""

    name: str
    file: str
    old: str
    new: str
    test: str


def main(arguments: argparse.Namespace) -> int:
    """Make the mistakes one after the other; the exit status."""
    entries = yaml.safe_load(Path(__file__).with_name("mutations.yaml").read_text(encoding="utf-8"))
    mutations = [Mutation(**entry) for entry in entries]
    mutations = [one for one in mutations if arguments.only in one.name or arguments.only in one.file]
    if arguments.fast:
        mutations = [one for one in mutations if not one.test.startswith("tests/distributed")]
    missed = []
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory)
        for name in COPIED:
            source = ROOT / name
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, copy / name, ignore=ignored) if source.is_dir() else shutil.copy(source, copy)
        for test in dict.fromkeys(one.test for one in mutations):
            status, output = run_test(copy, test)
            if status != 0:
                print(f"{test} does not pass without a mutation:\n{output[-3000:]}")
                return 1
        for one in mutations:
            file = copy / one.file
            text = file.read_text(encoding="utf-8")
            if text.count(one.old) != 1:
                print(f"OUT OF DATE  {one.name}: {one.file} has the text {text.count(one.old)} times: {one.old}")
                missed.append(one)
                continue
            file.write_text(text.replace(one.old, one.new), encoding="utf-8")
            started = time.monotonic()
            status, output = run_test(copy, one.test)
            file.write_text(text, encoding="utf-8")
            # 1: tests failed. Anything else, such as a file that cannot be imported, is no test that noticed.
            noticed = status == 1 and " failed" in output
            print(
                f"{'noticed' if noticed else 'MISSED '}  {time.monotonic() - started:5.1f} s  {one.test}: {one.name}",
                flush=True,
            )
            if not noticed:
                missed.append(one)
    print(f"{len(mutations) - len(missed)} of {len(mutations)} mutations noticed")
    return 1 if missed else 0


def run_test(copy: Path, test: str) -> tuple[int, str]:
    """Run a test in the copy until it fails; exit status and output."""
    command = [sys.executable, "-m", "pytest", "-x", "--tb=line", "-p", "no:randomly", test]
    done = subprocess.run(
        command,
        cwd=copy,
        env=os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Whether the tests notice mistakes.", allow_abbrev=False)
    parser.add_argument("--only", default="", metavar="TEXT")
    parser.add_argument("--fast", action="store_true")
    sys.exit(main(parser.parse_args()))
