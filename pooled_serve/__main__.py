"""``python -m pooled_serve``: the same as the ``pooled-serve`` command."""

import os
import sys

# USR2 runs this file by its path, which puts the package's folder first on sys.path: a project's
# "import options" would find the package's module.
if sys.path and os.path.realpath(sys.path[0]) == os.path.dirname(os.path.realpath(__file__)):
    del sys.path[0]

from pooled_serve.cli import main

if __name__ == "__main__":
    main()
