"""Settings of all tests, and what several of them start from."""

from pathlib import Path

import pytest
from hypothesis import settings

# The same examples in every run, no time limit per example (machines are shared) and nothing written to disk.
settings.register_profile("nemo_ibtpo", derandomize=True, deadline=None, database=None)
settings.load_profile("nemo_ibtpo")


@pytest.fixture(scope="session")
def tiny_base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a model for ``recipe=tiny`` with ``easy_sums.EASY_SUMS``."""
    from easy_sums import make_tiny_base_model  # imports torch, which most tests do without

    directory = tmp_path_factory.mktemp("base") / "model"
    make_tiny_base_model(directory)
    return directory
