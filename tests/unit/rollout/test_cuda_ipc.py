"""What of CUDA IPC can be looked at without a GPU: what it refuses. That it brings weights is in tests/gpu."""

from __future__ import annotations

import pytest

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.rollout.transport.cuda_ipc import refuse_expandable_segments


@pytest.mark.parametrize("variable", ["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"])
def test_expandable_segments_are_refused(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "max_split_size_mb:512,expandable_segments:True")
    with pytest.raises(UserError, match=f"^{variable}=.*take expandable_segments:True out$"):
        refuse_expandable_segments()
    monkeypatch.setenv(variable, "expandable_segments:False")
    refuse_expandable_segments()
