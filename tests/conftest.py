"""Settings of all tests, and what several of them start from."""

import fcntl
import os
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples in every run, no time limit per example (machines are shared) and nothing written to disk.
settings.register_profile("nemo_ibtpo", derandomize=True, deadline=None, database=None)
# `make test-random`: fresh examples each time, and ten times as many.
settings.register_profile(
    "random", derandomize=False, max_examples=1000, deadline=None, database=None, print_blob=True
)
settings.load_profile("nemo_ibtpo")

# Files of tests/unit that take more than some seconds, or processes of their own: not in `make check`.
SLOW = {
    "test_attention_cuda",
    "test_carry_over",
    "test_clipped",
    "test_comparison",
    "test_demo_training",
    "test_exp_manager",
    "test_functions",
    "test_gradient_arms",
    "test_hostile_answers",
    "test_ifeval",
    "test_imitation",
    "test_library",
    "test_logprobs_memory",
    "test_memory",
    "test_pool",
    "test_process",
    "test_recipe_files",
    "test_round_trip",
    "test_sampler_choices",
    "test_scorers",
    "test_smollm2",
    "test_sources",
    "test_study_file",
    "test_study_report",
    "test_trackers",
    "test_vllm_cpu_weights",
    "test_vllm_engine",
    "test_vllm_process",
    "test_window",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of slow files."""
    for item in items:
        if item.path.stem in SLOW:
            item.add_marker("slow")


@pytest.fixture(scope="session")
def tiny_base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a model for ``recipe=tiny`` with ``easy_sums.EASY_SUMS``, made once for all test processes."""
    from easy_sums import make_tiny_base_model  # imports torch, which most tests do without

    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    directory = shared / "tiny_base_model"
    with (shared / "tiny_base_model.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        make_tiny_base_model(directory)  # nothing to do if it is there
    return directory
