"""From the section ``method`` to a method."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from pydantic import ValidationError

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.methods.base import Method


def make_method(settings: Mapping[str, Any]) -> Method:
    """The method that the section ``method`` describes.

    Args:
        settings: ``class``, the import path of a subclass of :class:`Method`, and the values of its fields.

    Raises:
        UserError: there is no such class, or a value is missing, unknown or of another type.
    """
    cls = find_class(settings.get("class"))
    options = {name: value for name, value in settings.items() if name != "class"}
    try:
        return cls(**options)
    except ValidationError as error:
        raise UserError(_line(cls, error)) from None


def find_class(path: object) -> type[Method]:
    """The method of an import path such as ``my_package.my_module.MyMethod``.

    Raises:
        UserError: there is no such class.
    """
    if not isinstance(path, str) or "." not in path:
        raise UserError(f"method.class={path}: give the import path of a class, such as my_package.MyMethod")
    module, _, name = path.rpartition(".")
    try:
        cls = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"method.class={path} cannot be imported: {error}; is the directory of the package on PYTHONPATH?"
        ) from None
    if not (isinstance(cls, type) and issubclass(cls, Method)):
        raise UserError(f"method.class={path} is no subclass of nemo_ibtpo.methods.Method")
    return cls


def _line(cls: type[Method], error: ValidationError) -> str:
    found = error.errors(include_url=False)[0]
    key = ".".join(map(str, found["loc"]))
    if found["type"] == "extra_forbidden":
        return f"unknown key 'method.{key}': {cls.__name__} has {', '.join(cls.model_fields)}"
    if key in cls.model_fields and found["type"] == "missing":
        return f"method.{key} is missing ({_doc(cls, key)})"
    return f"method.{key}={found['input']!r}: {found['msg'][:1].lower()}{found['msg'][1:]} ({_doc(cls, key)})"


def _doc(cls: type[Method], key: str) -> str:
    field = cls.model_fields.get(key)
    return " ".join(((field and field.description) or cls.__name__).replace("``", "").split())
