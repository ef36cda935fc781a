"""Contradictions are refused before any work, each with a line that says what would be right.

Why this matters: the alternative is a shape error in the middle of Megatron, on all ranks, after minutes of loading.
Every rule has a case here, and the configuration all cases start from passes. Not exercised: what only torch can see
(whether there is a GPU) and what only the data can (``tests/unit/data``).
"""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from model_directories import HF_CONFIG, write_model_directory

from nemo_ibtpo.config.building import Sources, build
from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.layout import check_model, engine_ranks
from nemo_ibtpo.config.loader import compose
from nemo_ibtpo.config.paths import conf_dir
from nemo_ibtpo.config.schema import RunConfig
from nemo_ibtpo.config.validation import check_output_dir, max_seconds, validate

RECIPE = """\
defaults: [config, {{override /data: reasoning_gym}}, _self_]
output_dir: {directory}/runs/mine
model: {{path: {directory}/model}}
actor: {{tensor_model_parallel_size: 2, pipeline_model_parallel_size: 2, sequence_parallel: true}}
data: {{train: {{path: chain_sum}}}}
trainer: {{max_steps: 10, num_prompts_per_step: 12, num_prompts_per_update: 6}}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    directory = tmp_path_factory.mktemp("run")
    write_model_directory(directory / "model")
    (directory / "mine.yaml").write_text(RECIPE.format(directory=directory))
    return compose(str(directory / "mine.yaml"), [])


def changed(config: Any, **changes: Any) -> Any:
    """The configuration with dotted keys replaced (``__`` for the dot)."""
    for key, value in changes.items():
        head, _, rest = key.partition("__")
        value = changed(getattr(config, head), **{rest: value}) if rest else value
        config = dataclasses.replace(config, **{head: value})
    return config


def test_the_starting_point_is_valid_and_leaves_no_trace(config: RunConfig) -> None:
    validate(config, "train", 4)
    validate(config, "train", 8)
    assert not Path(config.output_dir).exists()


def test_a_bridge_that_is_not_there(config: RunConfig) -> None:
    if find_spec("megatron.bridge") and find_spec("transformer_engine"):
        pytest.skip("megatron-bridge is installed")
    with pytest.raises(UserError, match=r"^model.provider=bridge needs .*not installed here: pip install [^\n]+$"):
        validate(changed(config, model__provider="bridge"), "train", 4)


CONTRADICTIONS = [
    line.split(" -> ")
    for line in Path(__file__).with_name("contradictions.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
]


def refusal(config: RunConfig, changes: dict[str, Any]) -> str | None:
    """The line that the configuration with other values is refused with; None if it is valid."""
    raw = dataclasses.asdict(config)
    for key, value in changes.items():
        section = raw
        *sections, name = key.split(".")
        for inner in sections:
            section = section[inner]
        section[name] = value
    try:
        validate(build(RunConfig, raw, Sources(Path("the recipe"), raw, [])), "train", 4)
    except UserError as error:
        assert "\n" not in str(error)
        return str(error)
    return None


@pytest.mark.parametrize(("changes", "message"), CONTRADICTIONS, ids=lambda text: text[:60])
def test_contradictions(config: RunConfig, changes: str, message: str) -> None:
    pairs = (change.split("=", 1) for change in changes.split("; "))
    line = refusal(config, {key: yaml.safe_load(value) for key, value in pairs})
    assert line is not None and message in line


def test_a_bound_that_is_allowed_is_allowed(config: RunConfig) -> None:
    for changes, message in CONTRADICTIONS:
        if "expected a number of at least 0" in message and "=-1" in changes:
            key = changes.partition("=")[0]
            assert refusal(config, {key: 0}) is None, key


def test_any_sampler_goes_with_any_method_that_makes_sense(config: RunConfig) -> None:
    """As the shipped files have them, all samplers at the trajectories of the paper."""

    def composed(*words: str) -> RunConfig:
        common = [f"model.path={config.model.path}", f"output_dir={config.output_dir}", "data=reasoning_gym"]
        common += ["data.train.path=chain_sum", "name=any"]
        return compose(str(conf_dir() / "config.yaml"), [*common, *words])

    names = ("ibtpo", "ibtpo_paper", "grpo", "dr_grpo", "ibro", "treerl", "treepo", "spo")
    methods = {name: composed(f"method={name}") for name in names}
    for sampler in ("ib", "random", "independent", "entropy", "fixed_width", "full"):
        section = composed(f"sampler={sampler}").sampler
        assert (section.name, section.trajectories_per_prompt) == (sampler, 12)
        for name, with_method in methods.items():
            combined = changed(with_method, sampler=section)
            if sampler == "independent" and name in ("treerl", "treepo", "spo"):
                with pytest.raises(UserError, match="never branches; choose another sampler, or method=grpo"):
                    validate(combined, "train", 1)
            else:
                validate(combined, "train", 1)
    # A sampler that is chosen beside a method comes first.
    assert composed("method=spo", "sampler=random").sampler.name == "random"


def test_time_is_read() -> None:
    assert max_seconds(None) is None
    assert max_seconds("03:45:00") == 3 * 3600 + 45 * 60
    assert max_seconds("1:00:00:10") == 86410


def test_values_at_the_border_are_allowed(config: RunConfig) -> None:
    validate(changed(config, optimizer__warmup_steps=20, optimizer__min_lr=1e-6, loss__kl_coef=0.0), "train", 4)
    validate(
        changed(config, rollout__engine="transformers", rollout__transformers__cache_tokens=65 * 3072), "train", 4
    )
    validate(
        changed(config, rollout__engine="vllm", rollout__transformers__cache_tokens=1), "train", 4
    )  # vLLM reads no such key
    validate(changed(config, actor__max_tokens_per_microbatch=3072), "train", 4)
    validate(
        changed(config, rollout__engine="vllm", rollout__num_replicas=2, rollout__tensor_parallel_size=2), "train", 4
    )
    validate(changed(config, rollout__top_p=0.95, rollout__top_k=20), "train", 4)
    validate(changed(config, rollout__top_p=0.95, rollout__engine="transformers"), "train", 4)
    validate(changed(config, data__validation__seed=10001), "train", 4)
    validate(changed(config, actor__virtual_pipeline_model_parallel_size=2), "train", 4)
    validate(changed(config, data__validation__seed=9000, data__validation__options={"min_terms": 9}), "train", 4)


@pytest.mark.parametrize(
    ("replicas", "tensor", "world_size", "ranks"),
    [
        (None, 1, 4, (0, 1, 2, 3)),
        (None, 2, 8, (0, 2, 4, 6)),
        (1, 1, 4, (0,)),
        (2, 1, 8, (0, 4)),
        (3, 2, 16, (0, 4, 8)),
        (2, 2, 5, (0, 2)),
    ],
)
def test_engines_lie_evenly_over_the_ranks(
    config: RunConfig, replicas: int | None, tensor: int, world_size: int, ranks: tuple[int, ...]
) -> None:
    changes = {"rollout__num_replicas": replicas, "rollout__tensor_parallel_size": tensor}
    assert engine_ranks(changed(config, **changes), world_size) == ranks


@pytest.mark.parametrize(
    ("tensor", "pipeline", "model", "message"),
    [
        (
            2,
            1,
            {"num_attention_heads": 9, "num_key_value_heads": 3},
            "9 attention heads and 3 key/value heads; use one of 1, 3",
        ),
        (4, 1, {}, "=4 does not divide the model's 2 key/value heads; use one of 1, 2"),
        (2, 1, {"intermediate_size": 47}, "=2 does not divide the model's 47 MLP channels; use one of 1"),
        (1, 3, {}, "actor.pipeline_model_parallel_size=3 does not divide the model's 4 layers; use one of 1, 2, 4"),
        (1, 8, {}, "actor.pipeline_model_parallel_size=8 does not divide the model's 4 layers"),
        (1, 1, {"max_position_embeddings": 3071}, "= 3072 tokens, but the model has 3071 positions"),
    ],
)
def test_the_model_does_not_fit(
    config: RunConfig, tensor: int, pipeline: int, model: dict[str, int], message: str
) -> None:
    layout = changed(config, actor__tensor_model_parallel_size=tensor, actor__pipeline_model_parallel_size=pipeline)
    with pytest.raises(UserError) as caught:
        check_model(layout, HF_CONFIG | {"num_experts": None} | model)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"actor__expert_model_parallel_size": 4},
            "actor.expert_model_parallel_size=4 does not divide the model's 6 experts; use one of 1, 2, 3, 6",
        ),
        (
            {"actor__sequence_parallel": False},
            "actor.tensor_model_parallel_size=2 with experts needs actor.sequence_parallel=true",
        ),
    ],
)
def test_experts_do_not_fit(config: RunConfig, changes: dict[str, Any], message: str) -> None:
    # An MLP of 47 channels is no hindrance: a model with experts has none beside them.
    model = HF_CONFIG | {"num_experts": 6, "intermediate_size": 47}
    fits = changed(config, actor__expert_model_parallel_size=3, actor__moe_aux_loss_coef=None)
    check_model(fits, model)
    with pytest.raises(UserError) as caught:
        check_model(changed(config, **changes), model)
    assert message in str(caught.value)


def test_one_rank_for_a_model_on_four(config: RunConfig) -> None:
    with pytest.raises(
        UserError, match=r"1 rank cannot hold .* start 4, 8, 12, \.\.\. \(torchrun --nproc-per-node 4\)"
    ):
        validate(config, "train", 1)


def test_a_file_system_that_takes_no_files() -> None:
    with pytest.raises(UserError, match="output_dir=/proc/runs: cannot write to /proc"):
        check_output_dir("/proc/runs")
