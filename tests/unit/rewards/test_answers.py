"""The last box of a response is its answer: nothing before it, nothing beside it, nothing unfinished."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_ibtpo.rewards.answers import MAX_ANSWER_CHARS, extract_boxed


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so \\boxed{42}.", "42"),
        ("\\boxed{1} no, \\boxed{2} then", "2"),
        ("\\boxed{ \\frac{1}{\\sqrt{2}} }", "\\frac{1}{\\sqrt{2}}"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{a\\}}", "a\\}"),
        ("\\boxed{\\boxed{7}}", "7"),
        ("\\boxed{Q _\n_ Q}", "Q _\n_ Q"),
        ("the answer is 42", None),
        ("\\boxed 42", "42"),
        ("so $\\boxed 5$.", "5"),
        ("\\boxed {5}", "5"),
        ("\\fbox{5}", "5"),
        ("\\boxed{x}\\boxed {7}", "7"),
        ("\\boxed{x} or \\boxed -7.", "-7"),
        ("\\boxed\\frac{1}{2}", "\\frac{1}{2}"),
        ("\\boxed{7}, which I put into \\boxed as asked", "7"),
        ("\\boxedanswer{3}", None),
        ("\\boxed{}", None),
        ("\\boxed{ \n }", None),
        ("\\boxed{1} and then \\boxed{2", None),
        ("\\boxed{a\\", None),
        ("", None),
    ],
)
def test_the_last_box_is_the_answer(text: str, answer: str | None) -> None:
    assert extract_boxed(text) == answer


def test_an_answer_of_insane_length_is_none() -> None:
    assert extract_boxed(f"\\boxed{{{'7' * MAX_ANSWER_CHARS}}}") == "7" * MAX_ANSWER_CHARS
    assert extract_boxed(f"\\boxed{{{'7' * (MAX_ANSWER_CHARS + 1)}}}") is None
    assert extract_boxed("\\boxed{" + "{" * 1_000_000) is None


balanced = st.recursive(
    st.text(st.characters(codec="utf-8", exclude_characters="\\{}"), max_size=5),
    lambda inner: st.lists(inner, max_size=3).map(lambda parts: "{" + "".join(parts) + "}"),
)


@given(before=st.text(max_size=20), answer=balanced, after=st.text(max_size=20))
def test_any_balanced_answer_comes_out_whole(before: str, answer: str, after: str) -> None:
    after = after.replace("\\boxed", "")
    assert extract_boxed(f"{before}\\boxed{{{answer}}}{after}") == (answer.strip() or None)
