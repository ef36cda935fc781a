"""Settings of all tests, and what several of them start from."""

import fcntl
import os
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples in every run, no time limit per example (machines are shared) and nothing written to disk.
settings.register_profile("nemo_ibtpo", derandomize=True, deadline=None, database=None)
settings.load_profile("nemo_ibtpo")


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
