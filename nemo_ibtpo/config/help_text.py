"""What ``nemo-ibtpo train --help`` says about recipes, groups and keys, all of it read from where it is defined.

A recipe or a group's file is described by the first sentence of the comment it starts with, a key by the schema.
"""

from __future__ import annotations

import json
import shutil
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path

from nemo_ibtpo.config.exp_manager import BLOCK
from nemo_ibtpo.config.exp_manager_schema import ExpManagerConfig
from nemo_ibtpo.config.loader import default_values
from nemo_ibtpo.config.paths import conf_dir, recipes_dir
from nemo_ibtpo.config.reference import Key, keys, sections
from nemo_ibtpo.config.schema import EvalConfig, RunConfig

_EXAMPLES = """\
examples:
  nemo-ibtpo train recipe=tiny --dry-run
  nemo-ibtpo train recipe=tiny sampler=random trainer.max_steps=10
  nemo-ibtpo train recipe=my_recipe.yaml data=jsonl data.train.path=train.jsonl data.validation.path=val.jsonl
  torchrun --nproc-per-node 4 -m nemo_ibtpo.cli train recipe=tiny actor.tensor_model_parallel_size=4
  nemo-ibtpo train --config-path recipes --config-name my_recipe ++exp_manager.exp_dir=/results
"""
_EVAL_EXAMPLES = """\
examples:
  nemo-ibtpo eval model.path=runs/qwen3/hf benchmark=math500 output_dir=evals/qwen3
  nemo-ibtpo eval model.path=... output_dir=... benchmark=math500,aime24,gpqa_diamond benchmark.samples_per_problem=8
  nemo-ibtpo eval model.path=... output_dir=... benchmark=math500 benchmark.data.path=/data/MATH-500 --dry-run
  nemo-ibtpo eval model.path=... output_dir=... benchmark=jsonl benchmark.data.path=problems.jsonl
  nemo-ibtpo eval model.path=... output_dir=... benchmark=reasoning_gym benchmark.data.path=chain_sum
  nemo-ibtpo eval compare evals/base evals/trained --write comparison
"""
_COLUMN = 34
_TWIN = "data.validation."  # has the keys of data.train


def train_epilog() -> str:
    """Examples, recipes, groups, and every key with its default and meaning."""
    lines = [_EXAMPLES, "recipes (recipe=...):"]
    lines += _table(((path.stem, _summary(path)) for path in _files(recipes_dir())), _width())
    lines += ["", "groups (group=choice; a recipe's own keys come after it):", *_groups(RunConfig)]
    lines += ["", f"keys (key=value, here with the defaults, ??? where there is none; {_TWIN}* as data.train.*):"]
    lines += _keys(RunConfig)
    lines += ["", "keys of NeMo's exp_manager block, for recipes that have one (docs/nemo.md):"]
    return "\n".join([*lines, *_keys(ExpManagerConfig, f"{BLOCK}.")])


def eval_epilog() -> str:
    """Examples, groups, and every key of an evaluation with its default and meaning."""
    lines = [_EVAL_EXAMPLES, "groups (group=choice; benchmark=a,b,c evaluates one after the other):"]
    lines += [*_groups(EvalConfig), "", "keys (key=value, here with the defaults for benchmark=math500):"]
    return "\n".join([*lines, *_keys(EvalConfig)])


def _groups(root: type) -> Iterator[str]:
    known = {*sections(root), *keys(root)}
    for group in sorted(path for path in conf_dir().iterdir() if path.is_dir() and path.name in known):
        yield from _table(((f"{group.name}={path.stem}", _summary(path)) for path in _files(group)), _width())


def _keys(root: type, prefix: str = "") -> Iterator[str]:
    defaults = default_values(root)
    rows = (
        (f"{prefix}{key.path}={json.dumps(defaults[key.path], ensure_ascii=False)}", _explain(key))
        for key in keys(root).values()
        if not key.path.startswith(_TWIN)
    )
    return _table(rows, _width())


def _width() -> int:
    return shutil.get_terminal_size().columns


def _files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.yaml"))


def _explain(key: Key) -> str:
    choices = typing.get_args(key.type) if typing.get_origin(key.type) is typing.Literal else ()
    return key.doc.rstrip(".") + (f" [{' | '.join(choices)}]" if choices else "")


def _summary(file: Path) -> str:
    """First sentence of the comment that a YAML file starts with."""
    comment = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):  # Hydra's
            comment.append(line.lstrip("# "))
    return " ".join(comment).partition(". ")[0].rstrip(".")


def _table(rows: Iterator[tuple[str, str]], width: int) -> Iterator[str]:
    for name, text in rows:
        indent = " " * (_COLUMN + 2)
        wrapped = textwrap.wrap(text, max(width, 80), initial_indent=indent, subsequent_indent=indent)
        if wrapped and len(name) < _COLUMN:
            yield f"  {name:<{_COLUMN}}{wrapped[0].lstrip()}"
            yield from wrapped[1:]
        else:
            yield f"  {name}"
            yield from wrapped
