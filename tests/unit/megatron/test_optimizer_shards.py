"""A rank's range of a flattened tensor is a few boxes that together hold each of its elements once.

Why it matters: the distributed optimizer's state is saved and loaded box by box; a box that is off by one mixes the
moments of neighbouring weights, without a word.
"""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nemo_ibtpo.megatron.optimizer_shards import boxes


@given(shape=st.lists(st.integers(1, 5), max_size=4), data=st.data())
def test_boxes(shape: list[int], data: st.DataObject) -> None:
    numel = math.prod(shape)
    start, end = sorted(data.draw(st.tuples(st.integers(0, numel), st.integers(0, numel))))
    elements = np.arange(numel).reshape(shape)
    cut = list(boxes(shape, start, end))
    held = [
        elements[tuple(slice(first, first + size) for first, size in zip(*box, strict=True))].ravel() for box in cut
    ]
    assert [element for box in held for element in box] == list(range(start, end))
    assert len(cut) <= max(1, 2 * len(shape) - 1)
