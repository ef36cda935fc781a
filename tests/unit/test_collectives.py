"""The collector of cycles is as it was after something was read, also if reading failed."""

import gc

import pytest

from nemo_ibtpo.collectives import collector_paused


@pytest.mark.parametrize("enabled", [True, False])
def test_collector_is_paused(enabled: bool) -> None:
    (gc.enable if enabled else gc.disable)()
    try:
        with pytest.raises(ValueError, match="unreadable"), collector_paused():
            assert not gc.isenabled()
            raise ValueError("unreadable")
        assert gc.isenabled() == enabled
    finally:
        gc.enable()
