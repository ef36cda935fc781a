"""Print the installed versions of what an image's own build is to be kept, as constraints for pip.

    python docker/constraints.py torch vllm ... >constraints.txt

`pip freeze` will not do: it prints a package that was installed from a file as `torch @ file:...`, which constrains
nothing once that file is gone.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version


def main(packages: list[str]) -> int:
    """Print a line for every package; the exit status is 1 if one is not installed."""
    for package in packages:
        try:
            print(f"{package}=={version(package)}")
        except PackageNotFoundError:
            print(f"{package} is not installed in this image", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
