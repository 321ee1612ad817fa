"""Run the command line from a checkout with nothing installed but PyTorch and its dependencies.

`python bench/from_checkout.py bench gpu-suite --minutes 9 --out results` works from any folder. Links give the folders
of the checkout their package names, for this command and the processes it starts.
"""

import os
import sys

CHECKOUT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SITE = os.path.join(CHECKOUT, ".typecheck")
"""Folder of the links, which mypy uses as well; git ignores it."""


def main() -> None:
    """Create the missing links and replace this process with the command."""
    package = os.path.join(SITE, "speedyresnet")
    os.makedirs(package, exist_ok=True)
    for folder in ("engine", "kernels", "bench"):
        if not os.path.lexists(link := os.path.join(package, folder)):
            os.symlink(os.path.join("..", "..", folder), link)
    paths = [SITE, *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    os.execve(sys.executable, [sys.executable, "-m", "speedyresnet.bench", *sys.argv[1:]], variables)


if __name__ == "__main__":
    sys.path.pop(0)  # this folder, since some of its modules have the names of Python's own
    main()
