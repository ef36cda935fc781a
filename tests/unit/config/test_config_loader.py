"""A run does what its recipe says, or it does not start.

Why this matters: a misspelt key that is silently ignored costs a training run. Recipes here are written by the tests,
so that tuning a shipped one breaks nothing; that the shipped ones compose is tested too. Not exercised: whether the
values make sense together (``test_validation.py``).
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from nemo_ibtpo.config.building import at
from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.loader import compose, default_values, to_yaml
from nemo_ibtpo.config.paths import recipe_names

BASE = """\
defaults:
  - config
  - _self_
model: {path: some/model}
"""


def recipe(directory: Path, text: str, name: str = "mine") -> str:
    path = directory / f"{name}.yaml"
    path.write_text(text)
    return str(path)


def refusal(recipe: str, *words: str) -> str:
    with pytest.raises(UserError) as caught:
        compose(recipe, words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_compose(name: str) -> None:
    assert compose(name, []).name == name


@pytest.mark.parametrize(("group", "trajectories"), [("ib", 12), ("random", 12), ("independent", 12)])
def test_samplers_grow_equally_many_trajectories(tmp_path: Path, group: str, trajectories: int) -> None:
    config = compose(recipe(tmp_path, BASE), [f"sampler={group}"])
    assert config.sampler.name == group
    assert config.sampler.trajectories_per_prompt == trajectories


def test_defaults_are_the_papers_and_the_declared_ones(tmp_path: Path) -> None:
    config = compose(recipe(tmp_path, BASE), [])
    sampler, rollout, loss = config.sampler, config.rollout, config.loss
    sizes = (sampler.initial_rollouts, sampler.rounds, sampler.branch_points, sampler.rollouts_per_branch)
    assert sizes == (4, 9, 1, 1)
    assert (config.ib_score.beta, config.method["ib_coef"], config.optimizer.lr) == (5.0, 0.1, 1e-6)
    assert (loss.kl_coef, loss.clip_eps_low, loss.clip_eps_high) == (0.001, 0.2, 0.2)
    assert (rollout.max_new_tokens, rollout.temperature, rollout.top_p, rollout.top_k) == (2048, 1.0, 1.0, 0)
    assert (config.name, config.output_dir) == ("mine", "runs/mine")


def test_recipe_overrides_defaults_and_the_command_line_overrides_both(tmp_path: Path) -> None:
    text = BASE + "seed: 2\noptimizer: {lr: 1}\nsampler: {rounds: 3}\n"
    config = compose(recipe(tmp_path, text), ["seed=3", "name=other", "sampler=random"])
    assert (config.seed, config.name, config.output_dir) == (3, "other", "runs/other")
    assert (config.sampler.name, config.sampler.rounds) == ("random", 3)
    assert config.optimizer.lr == 1.0 and isinstance(config.optimizer.lr, float)


def test_recipe_starts_from_another_recipe(tmp_path: Path) -> None:
    recipe(tmp_path, BASE.replace("- _self_", "- override /sampler: random\n  - _self_") + "seed: 7\n", "first")
    config = compose(recipe(tmp_path, "defaults: [first, _self_]\noptimizer: {lr: 0.5}\n", "second"), [])
    assert (config.name, config.seed, config.sampler.name, config.optimizer.lr) == ("second", 7, "random", 0.5)


def test_free_form_options_take_new_names(tmp_path: Path) -> None:
    text = BASE.replace("- _self_", "- override /data: reasoning_gym\n  - _self_")
    text += "data: {train: {path: chain_sum, options: {min_terms: 2}}}\n"
    config = compose(recipe(tmp_path, text), ["data.train.options.max_terms=3"])
    assert config.data.train.options == {"min_terms": 2, "max_terms": 3}
    assert config.data.validation.options == config.data.train.options
    assert config.data.validation.path == "chain_sum"


def test_saved_configuration_is_a_recipe_that_repeats_the_run(tmp_path: Path) -> None:
    path = recipe(tmp_path, BASE)
    config = compose(path, ["rollout.stop=['</s>']", r'data.prompt_format="{question}\n\"ü\": "', "seed=5"])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert compose(str(tmp_path / "config.yaml"), []) == config


def test_environment_variables_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = recipe(tmp_path, BASE.replace("some/model", "'${oc.env:MODELS}/small'"))
    monkeypatch.setenv("MODELS", "/models")
    assert compose(path, []).model.path == "/models/small"
    monkeypatch.delenv("MODELS")
    assert refusal(path).startswith(f"model.path in {path}: KeyError")


def test_the_recipe_in_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    document = Path(__file__).parents[3] / "docs" / "configuration.md"
    _, _, block = document.read_text(encoding="utf-8").partition("```yaml\n")
    config = compose(recipe(tmp_path, block.partition("```")[0]), ["method=grpo"])
    assert (config.data.train.source, config.actor.tensor_model_parallel_size) == ("jsonl", 2)
    assert config.data.validation.path == "/home/me/validation.jsonl"
    assert (config.sampler.rounds, config.method["class"]) == (1, "nemo_ibtpo.methods.grpo.GRPO")


def test_default_values_know_every_key() -> None:
    values = default_values()
    assert values["ib_score.beta"] == 5.0
    assert values["model.path"] == "???"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("actor.tensor_paralel_size=2", "on the command line (did you mean 'actor.tensor_model_parallel_size'?)"),
        ("learning_rate=1", "unknown key 'learning_rate' on the command line"),
        (
            "sampler=rndom",
            "sampler=rndom: there is no such choice (did you mean 'random'?); choose one of entropy",
        ),
        ("sampler=3", "sampler=<name> chooses one of entropy, fixed_width, full, ib, independent, random"),
        ("actor=cpu", "actor is a section; set one of actor.device, actor.tensor"),
        ("trainer.max_steps=1e3", "trainer.max_steps=1000.0 on the command line: expected an integer (steps of the"),
        ("trainer.max_steps=true", "trainer.max_steps=true on the command line: expected an integer"),
        ("trainer.max_steps=1,2", "gives several values"),
        ("optimizer.lr=nan", "optimizer.lr=NaN on the command line: expected a finite number"),
        ("optimizer.lr=high", 'optimizer.lr="high" on the command line: expected a finite number'),
        ("actor.device=gpu", 'actor.device="gpu" on the command line: expected one of auto, cpu, cuda'),
        ("rollout.stop=[1]", "expected a list, each item a quoted text"),
        ("data.train.size=many", "expected an integer or null"),
        ("data.train.options=3", "expected a mapping of names to values"),
        ("model.path=null", "model.path=null on the command line: expected a quoted text (directory with a Hugging"),
        ("model.path=???", "model.path has no value: give it in"),
        ("+seed=3", "write it as plain key=value"),
        ("~seed", "write it as plain key=value"),
        ("seed", "'seed' on the command line is not key=value"),
        ("seed=[1", "'seed=[1' on the command line is not key=value"),
        ("model.path=/m/größe", """needs quotes of its own, inside those of the shell: 'model.path="/m/größe"'"""),
        ("output_dir=/runs/lr=1e-6", """inside those of the shell: 'output_dir="/runs/lr=1e-6"'"""),
        ("model.path=/m/x(1)", """inside those of the shell: 'model.path="/m/x(1)"'"""),
        ("data.prompt_format={question}", """the shell: 'data.prompt_format="{question}"'"""),
    ],
)
def test_words_that_are_refused(tmp_path: Path, word: str, message: str) -> None:
    assert message in refusal(recipe(tmp_path, BASE), word)


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        (r'rollout.stop=["\n\n","\nQ:"]', "rollout.stop", ["\n\n", "\nQ:"]),
        (r"rollout.stop=['\\n']", "rollout.stop", [r"\\n"]),
        (r"data.prompt_format='{question}\n'", "data.prompt_format", "{question}\n"),
        (r"data.prompt_format='{question}\nanswer in \boxed{}, \neq \text{x}\t'", "data.prompt_format", None),
        ('model.path="~/m"', "model.path", str(Path.home() / "m")),
        ("output_dir='~/x'", "output_dir", str(Path.home() / "x")),
    ],
)
def test_line_breaks_and_home_directories_on_the_command_line(
    tmp_path: Path, word: str, key: str, value: object
) -> None:
    if value is None:
        value = "{question}\nanswer in \\boxed{}, \\neq \\text{x}\t"
    assert at(asdict(compose(recipe(tmp_path, BASE), [word])), key) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BASE + "sampler: {ruonds: 3}", "unknown key 'sampler.ruonds' in {path} (did you mean 'sampler.rounds'?)"),
        (BASE + "actr: {}", "unknown key 'actr' in {path} (did you mean 'actor'?)"),
        (BASE + "actor: 3", "actor in {path} is a section of keys, not 3"),
        (BASE + "actor: {device: tpu}", 'actor.device="tpu" in {path}: expected one of auto, cpu, cuda'),
        (
            "defaults: [config, _self_]\n",
            "model.path has no value: give it in {path} or as model.path=<value> on the",
        ),
        ("model: {path: x}\n", "does the recipe's defaults list start with `config`?"),
        ("defaults: [config]\nseed: 1\n", "End it with _self_."),
        ("defaults: [config, {override /sampler: rndom}, _self_]\n", "sampler=rndom: there is no such choice"),
        ("defaults: [cnfig, _self_]\n", "Could not load 'cnfig'"),
        ("seed: [1\nname: x", "{path} is not YAML: expected ',' or ']', but got ':' at line 2, column 5"),
        ("- seed", "{path} is no mapping of keys to values"),
        ("", "{path} is no mapping of keys to values"),
    ],
)
def test_recipes_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = recipe(tmp_path, text)
    assert message.replace("{path}", path) in refusal(path)


def test_a_choice_beside_the_recipe_is_found_and_checked_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "sampler").mkdir()
    (tmp_path / "sampler" / "mine.yaml").write_text("name: ib\nrounds: x\n")
    path = recipe(tmp_path, BASE)
    assert "sampler.initial_rollouts is missing" in refusal(path, "sampler=mine")


def test_a_file_that_hides_the_defaults_is_refused(tmp_path: Path) -> None:
    path = recipe(tmp_path, BASE)
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    assert refusal(path).startswith(f"{tmp_path / 'config.yaml'} hides the defaults")


def test_a_recipe_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"seed: \xff")
    assert refusal(str(tmp_path / "mine.yaml")).startswith(f"{tmp_path / 'mine.yaml'} cannot be read: 'utf-8' codec")


def test_recipes_that_do_not_exist() -> None:
    assert "no such recipe (did you mean 'tiny'?); the names are" in refusal("tinny")
    assert "there is no such file" in refusal("nowhere/mine.yaml")
    assert "a recipe file ends in .yaml" in refusal("nowhere/mine")
