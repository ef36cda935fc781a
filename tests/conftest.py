"""Settings of all tests."""

from hypothesis import settings

# The same examples in every run, no time limit per example (machines are shared) and nothing written to disk.
settings.register_profile("nemo_ibtpo", derandomize=True, deadline=None, database=None)
settings.load_profile("nemo_ibtpo")
