"""Reward functions of the user's: found by name, called with what they ask for, checked in what they return.

Runs in worker processes (``rewards.worker``). A function names the arguments it wants:

- ``prompt``: the question as text; ``response``: the response as text; ``answer``: the gold answer, "" without one;
- ``row``: the further columns of the row; ``response_tokens``: number of tokens of the response.

It returns a number in [0, 1], or a mapping with ``score`` and further named numbers, which become metrics. A function
with plural names (``responses`` and the like) gets lists of equal length and returns a list. Both may be ``async``.
Further keyword arguments are the options of the configuration.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

VERIFIER = "verifier"  # in the place of a function: the data set's own verifier
_ARGUMENTS = ("prompt", "response", "answer", "row", "response_tokens")
_PLURAL = {"prompts": "prompt", "responses": "response", "answers": "answer", "rows": "row"}


@dataclass(frozen=True)
class Part:
    """One of the functions that a reward is made of.

    Attributes:
        name: of the metric.
        function: ``path/to/file.py:name``, ``package.module:name`` or ``verifier``.
        weight: its share of the reward, before all weights are divided by their sum.
        options: further keyword arguments.
    """

    name: str
    function: str
    weight: float
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Request:
    """What is to be judged; the fields are the arguments of a function."""

    prompt: str
    response: str
    answer: str
    row: Mapping[str, Any]
    response_tokens: int


@dataclass(frozen=True)
class Scored:
    """A score in [0, 1], and named numbers beside it."""

    score: float
    details: Mapping[str, float]


@cache
def find(name: str) -> Callable[..., Any]:
    """Import a function.

    Raises:
        ValueError: there is none of that name; the message is one line.
    """
    where, _, function_name = name.rpartition(":")
    try:
        module = _module(where)
    except Exception as error:  # whatever the user's module raises
        raise ValueError(f"{where} cannot be imported: {type(error).__name__}: {error}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(f"{where} has no function {function_name!r}")
    return function


def _module(where: str) -> Any:
    if not where.endswith(".py"):
        return importlib.import_module(where)
    path = Path(where).expanduser().resolve()
    sys.path.insert(0, str(path.parent))  # for modules beside it
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def defect(part: Part) -> str | None:
    """Why a function cannot be called as the configuration says, or None."""
    if part.function == VERIFIER:
        return None
    try:
        function = find(part.function)
        parameters = inspect.signature(function).parameters
    except ValueError as error:
        return str(error)
    if any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values()):
        return None
    if unknown := sorted(set(part.options) - set(parameters)):
        return f"{part.function} takes no option {unknown[0]!r}"
    known = {*_ARGUMENTS, *_PLURAL, *part.options}
    for name, parameter in parameters.items():
        if name not in known and parameter.default is parameter.empty:
            return f"{part.function} asks for {name!r}; there are {', '.join(_ARGUMENTS)} and its options"
    return None


def call(part: Part, requests: Sequence[Request]) -> list[Scored | str]:
    """The scores of responses, in their order; a text in the place of one says what went wrong."""
    function = find(part.function)
    names = _names(function)
    if set(names) & set(_PLURAL):
        arguments = {name: [getattr(request, _PLURAL[name]) for request in requests] for name in names}
        try:
            results = _finished(function(**arguments, **part.options))
            if len(results) != len(requests):
                raise ValueError(f"{len(results)} results for {len(requests)} responses")
        except Exception as error:
            return [_described(error)] * len(requests)
        return [_checked(result) for result in results]
    calls = [{name: getattr(request, name) for name in names} | dict(part.options) for request in requests]
    if inspect.iscoroutinefunction(function):
        return [_checked(result) for result in asyncio.run(_together(function, calls))]
    return [_checked(_tried(function, arguments)) for arguments in calls]


def _names(function: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(function).parameters
    if any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values()):
        return list(_ARGUMENTS)
    return [name for name in parameters if name in (*_ARGUMENTS, *_PLURAL)]


def _tried(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    try:
        return function(**arguments)
    except MemoryError:
        raise
    except Exception as error:
        return error


async def _together(function: Callable[..., Any], calls: Sequence[Mapping[str, Any]]) -> list[Any]:
    return await asyncio.gather(*(function(**arguments) for arguments in calls), return_exceptions=True)


def _finished(result: Any) -> Any:
    return asyncio.run(_awaited(result)) if inspect.isawaitable(result) else result


async def _awaited(result: Any) -> Any:
    return await result


def _checked(result: Any) -> Scored | str:
    if isinstance(result, BaseException):
        return _described(result)
    named = dict(result) if isinstance(result, Mapping) else {"score": result}
    for name, value in named.items():
        if isinstance(value, bool) or hasattr(value, "item"):
            value = float(value)
        if not isinstance(value, int | float) or not math.isfinite(value):
            return f"{name} is {value!r}, not a finite number"
        named[name] = float(value)
    if "score" not in named:
        return f"no 'score' among {', '.join(map(str, named)) or 'nothing'}"
    if not 0 <= named["score"] <= 1:
        return f"the score {named['score']:g} is not in [0, 1]"
    return Scored(named.pop("score"), named)


def _described(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]
