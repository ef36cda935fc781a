"""Where the YAML lies: beside the package in a checkout, inside it in an installed wheel.

Invariant: exactly one of the two places is used, the one inside the package if there is one, so that an
installed wheel never reads a checkout that happens to surround it.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from nemo_ibtpo.config.errors import UserError

_PACKAGE = Path(__file__).resolve().parents[1]


def conf_dir() -> Path:
    """Directory of the Hydra groups, the home of every default."""
    return _shipped("conf")


def recipes_dir() -> Path:
    """Directory of the recipes that come with the package."""
    return _shipped("recipes")


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package, sorted."""
    return sorted(path.stem for path in recipes_dir().glob("*.yaml"))


def find_recipe(name_or_path: str) -> Path:
    """Absolute path of a recipe: a shipped one by its name, any other by its path (``*.yaml``).

    Raises:
        UserError: there is no such recipe or file.
    """
    path = Path(name_or_path).expanduser()
    if path.suffix == ".yaml" or path.name != name_or_path:
        if path.suffix != ".yaml":
            raise UserError(f"recipe={name_or_path}: a recipe file ends in .yaml")
        if not path.is_file():
            raise UserError(f"recipe={name_or_path}: there is no such file")
        return path.resolve()
    names = recipe_names()
    if name_or_path not in names:
        hint = did_you_mean(name_or_path, names)
        raise UserError(
            f"recipe={name_or_path}: there is no such recipe{hint}; the names are {', '.join(names)}, "
            "and any other recipe is given by its path (*.yaml)"
        )
    return recipes_dir() / f"{name_or_path}.yaml"


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """``" (did you mean 'x'?)"`` for the closest known word, or nothing."""
    close = get_close_matches(word, known, n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def _shipped(name: str) -> Path:
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name
