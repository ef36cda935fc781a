"""How a check refuses a value: one line with the key, its value, and what would be right."""

from __future__ import annotations

from nemo_ibtpo.config.errors import UserError


def refuse_if(wrong: bool, message: str) -> None:
    """Raise a ``UserError`` with the message if something is wrong."""
    if wrong:
        raise UserError(message)


def divisors(*numbers: int) -> str:
    """The common divisors, spelled out."""
    return ", ".join(str(d) for d in range(1, min(numbers) + 1) if all(number % d == 0 for number in numbers))
