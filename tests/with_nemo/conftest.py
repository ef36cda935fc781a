"""These tests run NeMo itself: ``make test-nemo``. Elsewhere they are skipped."""

from __future__ import annotations

import pytest

from nemo_ibtpo.nemo import toolkit


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if toolkit.is_installed():
        return
    for item in items:
        if "with_nemo" in item.path.parts:
            item.add_marker(pytest.mark.skip(reason="nemo_toolkit is not installed: make test-nemo"))
