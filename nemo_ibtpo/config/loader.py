"""A recipe and the command line become one ``RunConfig``.

Hydra composes: ``conf/`` holds every default, a recipe is the primary config whose defaults list starts with
``config``, and the command line's overrides come last. What comes out is built into the frozen dataclasses of
``schema`` (``building``).

Invariants (tested by ``tests/unit/config/test_config_loader.py``): a key that the schema does not know, a key without
a value and a value of another type are refused with one line that names the key, where it was written and the
closest known name; what ``to_yaml`` writes is a recipe that composes to the same configuration.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import re
import shutil
import tempfile
import typing
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import hydra
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from nemo_ibtpo.config import exp_manager
from nemo_ibtpo.config.building import Sources, at, build, meaning
from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.exp_manager_schema import ExpManagerConfig
from nemo_ibtpo.config.paths import conf_dir, did_you_mean, find_recipe, recipes_dir
from nemo_ibtpo.config.reference import keys, sections
from nemo_ibtpo.config.schema import EvalConfig, RunConfig
from nemo_ibtpo.methods.factory import find_class

_MISSING = "???"  # OmegaConf's mark of a value that must be given
_PATHS = (
    "output_dir",
    "model.path",
    "data.train.path",
    "data.validation.path",
    "benchmark.data.path",
    "checkpoint.resume",
)
# Texts, in which \\n and \\t on the command line are a line break and a tab, unless they begin a command of TeX.
_TEXTS = ("stop", "prompt_format", "system_prompt")
_ESCAPES = {"n": "\n", "t": "\t"}
_TEX = "nabla|ne|neg|neq|newline|ni|nmid|not|notin|nu|tag|tan|tanh|tau|text|textbf|textit|tfrac|theta|times|to|top"
_ESCAPED = re.compile(rf"(?<!\\)\\(?!(?:{_TEX})(?![a-zA-Z]))([nt])")
_NO_CHOICE = re.compile(
    r"Could not find '(?P<group>[^']+)/(?P<choice>[^'/]+)'\s+"
    r"Available options in '[^']+':(?P<options>(\n\t.*)+)"
)


class Composition:
    """A primary config and checked overrides, ready for Hydra to compose.

    Args:
        root: the dataclass that is to be built.
        path: of the primary config.
        overrides: of the command line.
        further: directory with further choices of groups.

    Attributes:
        root, path: as given.
        hydra_overrides: what Hydra takes, its search path among them.

    Raises:
        UserError: the file cannot be read, or an override is not as it should be.
    """

    def __init__(self, root: type, path: Path, overrides: Sequence[str], further: str | None = None) -> None:
        self.root = root
        self.path = path
        written = _read(path)
        checked = [_checked_override(override, root) for override in overrides]
        directories = (conf_dir(), recipes_dir(), *([further] if further else []))
        search = ", ".join(f"'file://{directory}'" for directory in directories)
        self.hydra_overrides = [f"hydra.searchpath=[{search}]", *checked]
        self.sources = Sources(path, written, checked)

    def compose(self) -> DictConfig:
        """Let Hydra compose.

        Raises:
            UserError: it could not.
        """
        return _compose(self.path, self.hydra_overrides)

    def build(self, composed: DictConfig) -> Any:
        """Build the dataclass from what Hydra composed.

        Raises:
            UserError: a value is missing or not as it should be.
        """
        composed = copy.deepcopy(composed)
        _expand_home(composed)
        return build(self.root, _resolved(composed, self.root, self.sources), self.sources)

    def asked(self, composed: DictConfig) -> Asked:
        """What a recipe asks for, from what Hydra composed.

        Raises:
            UserError: a value is missing, or NeMo's block is not as it should be.
        """
        if composed.get("name", _MISSING) == _MISSING:
            OmegaConf.update(composed, "name", self.path.stem, force_add=True)
        block = _exp_manager(_resolved(composed, self.root, self.sources).get(exp_manager.BLOCK), self.sources)
        run = copy.deepcopy(composed)
        with open_dict(run):
            run.pop(exp_manager.BLOCK, None)
        return Asked(self, run, block)


class Asked:
    """What a recipe and the overrides of a command line ask for; made by :meth:`Composition.asked`.

    Attributes:
        exp_manager: NeMo's block, None without one; it decides some keys of the run.
    """

    def __init__(self, composition: Composition, composed: DictConfig, block: ExpManagerConfig | None) -> None:
        self._composition = composition
        self._composed = composed
        self.exp_manager = block

    def config(self, version: str | None) -> RunConfig:
        """The configuration of a run.

        Args:
            version: of the experiment that NeMo's block speaks of; of no meaning without one.

        Raises:
            UserError: a value is not as it should be, or contradicts the block.
        """
        composed, sources = copy.deepcopy(self._composed), self._composition.sources
        decided = {} if self.exp_manager is None else exp_manager.decisions(self.exp_manager, version)
        for key, (value, by) in decided.items():
            if sources.is_written(key) and OmegaConf.select(composed, key) != value:
                raise UserError(f"{key} {sources.of(key)}: exp_manager.{by} decides it; take one of the two out")
            OmegaConf.update(composed, key, value)
        _drop_replaced_defaults(composed, sources)
        config: RunConfig = self._composition.build(composed)
        return config

    def at_this_start(self) -> RunConfig:
        """The configuration of a run that would start now, in this process alone.

        Raises:
            UserError: as :meth:`config`.
        """
        block = self.exp_manager
        return self.config(None if block is None else exp_manager.version_of_this_start(block))


def composition(recipe: str, overrides: Sequence[str]) -> Composition:
    """A recipe, by its name or path, with the overrides of a command line.

    Raises:
        UserError: there is no such recipe, or as :class:`Composition`.
    """
    return Composition(RunConfig, find_recipe(recipe), overrides)


def recipe_and_overrides(arguments: Sequence[str], command: str = "train") -> tuple[str, list[str]]:
    """What ``recipe=<name or path>`` says among the arguments of a command line, and the others.

    Raises:
        UserError: there is not exactly one recipe.
    """
    recipes = [one.removeprefix("recipe=") for one in arguments if one.startswith("recipe=")]
    if len(recipes) != 1:
        raise UserError(
            f"{command} takes one recipe=<name or path>, not {len(recipes)}; `nemo-ibtpo train --help` lists them"
        )
    return recipes[0], [one for one in arguments if not one.startswith("recipe=")]


def compose(recipe: str, overrides: Sequence[str]) -> RunConfig:
    """Build the configuration of a run that would start now.

    Args:
        recipe: name of a shipped recipe, or path of a YAML file.
        overrides: of the command line, ``key=value`` or ``group=choice``.

    Raises:
        UserError: anything in the recipe or the command line is not as it should be.
    """
    (config,) = compose_each(recipe, overrides, [{}])
    return config


def compose_each(recipe: str, overrides: Sequence[str], changes: Iterable[Mapping[str, Any]]) -> list[RunConfig]:
    """As :func:`compose`, for runs that differ in a few values: Hydra, which takes its time, composes once.

    Args:
        recipe, overrides: what the runs have in common.
        changes: of each run, values by their dotted key.

    Raises:
        UserError: as :func:`compose`.
    """
    made = composition(recipe, overrides)
    composed = made.compose()
    configs = []
    for values in changes:
        own = copy.deepcopy(composed)
        for key, value in values.items():
            OmegaConf.update(own, key, value)
        configs.append(made.asked(own).at_this_start())
    return configs


def compose_evaluation(benchmark: str, overrides: Sequence[str]) -> EvalConfig:
    """Build the configuration of an evaluation from ``conf/eval.yaml`` and the overrides of the command line.

    Args:
        benchmark: name of a shipped benchmark, or path of a YAML file like those in ``conf/benchmark``.
        overrides: ``key=value`` or ``group=choice``.

    Raises:
        UserError: anything in the file or the command line is not as it should be.
    """
    with tempfile.TemporaryDirectory() as group:
        if benchmark.endswith(".yaml"):
            file = Path(benchmark).expanduser()
            _read(file)
            if (conf_dir() / "benchmark" / file.name).exists():
                raise UserError(
                    f"benchmark={benchmark}: {file.stem} is the name of a shipped benchmark; rename the file"
                )
            (Path(group) / "benchmark").mkdir()
            shutil.copyfile(file, Path(group) / "benchmark" / file.name)
            benchmark = file.stem
        chosen = [f"benchmark={benchmark}", *overrides]
        made = Composition(EvalConfig, conf_dir() / "eval.yaml", chosen, further=group)
        config: EvalConfig = made.build(made.compose())
    return config


def to_yaml(config: RunConfig | EvalConfig) -> str:
    """The whole configuration as YAML; saved beside a run, it is a recipe that repeats it."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)


def default_values(root: type = RunConfig) -> dict[str, Any]:
    """Every default of ``conf/`` by its dotted key, interpolations and ``???`` as they are written."""
    primary = {EvalConfig: "eval.yaml", ExpManagerConfig: "exp_manager.yaml"}.get(root, "config.yaml")
    composed = OmegaConf.to_container(Composition(root, conf_dir() / primary, []).compose())
    return {key: at(composed, key) for key in keys(root)}


def _read(recipe: Path) -> Mapping[str, Any]:
    """What a recipe's file itself holds."""
    try:
        written = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{recipe} cannot be read: {_first_line(error)}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{recipe} is not YAML: {error.problem}{where}") from None
    if not isinstance(written, Mapping):
        raise UserError(f"{recipe} is no mapping of keys to values")
    choices = (str(name) for entry in written.get("defaults") or [] if isinstance(entry, Mapping) for name in entry)
    for key in (*written, *(name.removeprefix("override ").lstrip("/") for name in choices)):
        _refuse_old_name(str(key), f"in {recipe}")
    namesake = recipe.parent / "config.yaml"
    if "config" in (written.get("defaults") or []) and namesake.is_file():
        raise UserError(f"{namesake} hides the defaults that {recipe} starts from: rename it or move the recipe")
    return written


def _checked_override(word: str, root: type) -> str:
    """Check one word of the command line against the schema; the word as Hydra takes it."""
    name, _, value = word.partition("=")
    if name.lstrip("+").rpartition(".")[2] in _TEXTS:
        word = f"{name}={_ESCAPED.sub(lambda found: _ESCAPES[found[1]], value)}"
    override = _parsed(word)
    key = override.key_or_group
    of_nemo = root is RunConfig and key.partition(".")[0] == exp_manager.BLOCK
    # NeMo's users write `++key=value` for any key; a block that is not in the recipe is added, however it is written.
    allowed = {OverrideType.CHANGE, OverrideType.FORCE_ADD, *([OverrideType.ADD] if of_nemo else [])}
    if override.type not in allowed or override.package is not None:
        raise UserError(f"'{word}' on the command line: write it as plain key=value, without +, ~ or @")
    word = word.lstrip("+")
    if override.is_sweep_override():
        raise UserError(
            f"'{word}' on the command line gives several values; a run takes one (quote a text with a comma)"
        )
    if of_nemo:
        return f"++{word}"
    _refuse_old_name(key, "on the command line")
    if key in sections(root) or _is_group(key, root):
        if not _is_group(key, root):
            inside = ", ".join(path for path in keys(root) if path.startswith(f"{key}."))
            raise UserError(f"'{word}' on the command line: {key} is a section; set one of {inside}")
        if not isinstance(override.value(), str):
            raise UserError(f"'{word}' on the command line: {key}=<name> chooses one of {_choices(key)}")
        return word
    if key in keys(root):
        return f"++{word}" if _is_free_form(key, root) else word
    if any(key.startswith(f"{path}.") and _is_free_form(path, root) for path in keys(root)):
        return f"++{word}"  # Hydra would otherwise only change what is there
    known = [*keys(root), "benchmark" if root is EvalConfig else "recipe"]
    raise UserError(f"unknown key '{key}' on the command line{did_you_mean(key, known)}")


def _parsed(word: str) -> Override:
    parser = OverridesParser.create()
    try:
        return parser.parse_override(word)
    except HydraException as error:
        reason = _first_line(error, skip="Error parsing override")
    key, equals, value = word.partition("=")
    quoted = f"{key}={json.dumps(value, ensure_ascii=False)}"
    if equals and not value.startswith("[") and re.fullmatch(r"[+\w.]+", key):
        with contextlib.suppress(HydraException):
            parser.parse_override(quoted)
            raise UserError(
                f"'{word}' on the command line: this value needs quotes of its own, inside those of the shell: "
                f"'{quoted}'"
            )
    raise UserError(f"'{word}' on the command line is not key=value: {reason}")


def _expand_home(composed: DictConfig) -> None:
    """Write out ``~`` at the beginning of paths."""
    for key in _PATHS:
        if isinstance(value := OmegaConf.select(composed, key), str) and value.startswith("~"):
            OmegaConf.update(composed, key, str(Path(value).expanduser()))


def _compose(recipe: Path, overrides: Sequence[str]) -> DictConfig:
    try:
        with (
            warnings.catch_warnings(),
            hydra.initialize_config_dir(config_dir=str(recipe.parent), version_base="1.3"),
        ):
            # Hydra only warns of a list without _self_. Other warnings are not the user's: OmegaConf 2.4 deprecates
            # a function that Hydra calls.
            warnings.filterwarnings("error", message=".*Defaults list is missing `_self_`")
            return hydra.compose(recipe.stem, list(overrides))
    except UserWarning as warning:
        raise UserError(f"{recipe}: {_first_line(warning).partition(' See ')[0]} End it with _self_.") from None
    except (HydraException, OmegaConfBaseException) as error:
        if match := _NO_CHOICE.search(str(error)):
            options = match["options"].split()
            raise UserError(
                f"{match['group']}={match['choice']}: there is no such choice"
                f"{did_you_mean(match['choice'], options)}; choose one of {', '.join(options)}"
            ) from None
        raise UserError(f"{recipe}: {_first_line(error)}") from None


def _resolved(composed: DictConfig, root: type, sources: Sources) -> dict[str, Any]:
    """Plain values, none of which is missing."""
    for key in _missing(OmegaConf.to_container(composed)):
        where = f"in {sources.recipe} or " if root is RunConfig else ""
        raise UserError(
            f"{key} has no value: give it {where}as {key}=<value> on the command line{meaning(root, key)}"
        )
    try:
        resolved = OmegaConf.to_container(composed, resolve=True)
    except OmegaConfBaseException as error:
        key = error.full_key or ""
        raise UserError(f"{key} {sources.of(key)}: {_first_line(error)}") from None
    assert isinstance(resolved, dict)
    return cast("dict[str, Any]", resolved)


def _exp_manager(written: Any, sources: Sources) -> ExpManagerConfig | None:
    if written is None:
        return None
    if not isinstance(written, Mapping):
        raise UserError(f"{exp_manager.BLOCK} {sources.of(exp_manager.BLOCK)} is a section of keys, not {written!r}")
    defaults = OmegaConf.load(conf_dir() / "exp_manager.yaml")
    merged = OmegaConf.merge(defaults, OmegaConf.create(exp_manager.without_idle(written, sources.of)))
    plain = cast("dict[str, Any]", OmegaConf.to_container(merged))
    block: ExpManagerConfig = build(ExpManagerConfig, plain, sources, f"{exp_manager.BLOCK}.")
    return block


def _missing(node: Any, prefix: str = "") -> Iterator[str]:
    for name, value in node.items():
        if isinstance(value, dict):
            yield from _missing(value, f"{prefix}{name}.")
        elif value == _MISSING:
            yield f"{prefix}{name}"


def _is_free_form(key: str, root: type) -> bool:
    return typing.get_origin(keys(root)[key].type) is dict


def _drop_replaced_defaults(composed: DictConfig, sources: Sources) -> None:
    """With a method.class of the user's own, the constants of the method that it replaces have no meaning."""
    if sources.is_written("method.class"):
        fields = find_class(OmegaConf.select(composed, "method.class")).model_fields
        with open_dict(composed):
            for name in set(composed.method) - {"class", *fields}:
                if not sources.is_written(f"method.{name}"):
                    composed.method.pop(name)


def _is_group(key: str, root: type) -> bool:
    """Whether the key chooses a file below ``conf/``."""
    known = key in sections(root) or key in keys(root)
    return known and (conf_dir() / key).is_dir()


def _refuse_old_name(key: str, where: str) -> None:
    section, _, field = key.partition(".")
    if section == "advantage":
        new = f"method.{field}" if field and field != "name" else "method"
        raise UserError(
            f"unknown key '{key}' {where}: it is called {new} now; method=<name> chooses one of "
            f"{_choices('method')}, with its sampler, which sampler=<name> changes"
        )


def _choices(group: str) -> str:
    return ", ".join(sorted(path.stem for path in (conf_dir() / group).glob("*.yaml")))


def _first_line(error: BaseException, skip: str = " ") -> str:
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith(skip)]
    return lines[0].strip() if lines else type(error).__name__
