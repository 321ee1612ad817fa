"""Runs the command line from a checkout alone, with nothing installed but PyTorch and what it brings along.

`python bench/from_checkout.py bench gpu-suite --minutes 9 --out results`, from anywhere. Links give the folders of
the checkout their package names, for this command and for the processes that it starts.
"""

import os
import sys

CHECKOUT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SITE = os.path.join(CHECKOUT, ".typecheck")
"""Where the same links serve mypy; git ignores it."""


def main() -> None:
    """Make the links that are missing, and become the command."""
    package = os.path.join(SITE, "speedyresnet")
    os.makedirs(package, exist_ok=True)
    for folder in ("engine", "kernels", "bench"):
        if not os.path.lexists(link := os.path.join(package, folder)):
            os.symlink(os.path.join("..", "..", folder), link)
    paths = [SITE, *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    os.execve(sys.executable, [sys.executable, "-m", "speedyresnet.bench", *sys.argv[1:]], variables)


if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose modules are called as some of Python's own
    main()
