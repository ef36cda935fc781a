"""Tagged copies of a rank's weights in host memory: the reference policy without a second model on the device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor


class HostCopies:
    """Copies of a module's parameters by tag.

    Args:
        module: the module whose parameters are copied; their storage is written in place, so that buffers the
            optimizer shares with them stay shared.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        self._copies: dict[str, list[Tensor]] = {}

    def __contains__(self, tag: str) -> bool:
        return tag in self._copies

    @torch.no_grad()
    def save(self, tag: str) -> None:
        """Copy the current weights to the host (pinned beside a GPU), over an older copy of the tag."""
        if tag not in self._copies:
            self._copies[tag] = [
                torch.empty_like(p, device="cpu", pin_memory=p.is_cuda) for p in self._module.parameters()
            ]
        for copy, parameter in zip(self._copies[tag], self._module.parameters(), strict=True):
            copy.copy_(parameter, non_blocking=True)
        self._wait()

    @torch.no_grad()
    def restore(self, tag: str) -> None:
        """Write the tagged copy into the module.

        Raises:
            KeyError: nothing was saved under the tag.
        """
        for copy, parameter in zip(self._copies[tag], self._module.parameters(), strict=True):
            parameter.copy_(copy, non_blocking=True)
        self._wait()

    @contextlib.contextmanager
    def swapped_in(self, tag: str) -> Iterator[None]:
        """Within the context the module has the tagged weights."""
        self.save("current")
        self.restore(tag)
        try:
            yield
        finally:
            self.restore("current")

    @staticmethod
    def _wait() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
