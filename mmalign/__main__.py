"""``python -m mmalign`` is the ``mmalign`` command."""

import os
import sys

if not sys.flags.safe_path and sys.path[0] == os.getcwd():
    sys.path.append(sys.path.pop(0))  # where `-m` puts the working folder, a file of its could hide a library

from mmalign.cli import main

main()
