"""How a check refuses a value: one line with the key, its value, and what would be right."""

from __future__ import annotations

from nemo_ibtpo.config.errors import UserError


def refuse_if(wrong: bool, message: str) -> None:
    """Raise a ``UserError`` with the message if something is wrong."""
    if wrong:
        raise UserError(message)


def positive(key: str, value: float) -> None:
    """Refuse a value that is not above 0."""
    refuse_if(value <= 0, f"{key}={value} must be above 0")


def not_negative(key: str, value: float) -> None:
    """Refuse a value below 0."""
    refuse_if(value < 0, f"{key}={value} must not be negative")


def divisors(*numbers: int) -> str:
    """The common divisors, spelled out."""
    return ", ".join(str(d) for d in range(1, min(numbers) + 1) if all(number % d == 0 for number in numbers))
