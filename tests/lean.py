"""Runs a script that imports Keras without what Keras imports if it is there: `lean.py SCRIPT ARGUMENTS...`."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path


def leave_out() -> None:
    """Let packages seem to be missing: they draw, hold tables and wrap models for scikit-learn.

    They are a third to a half of what importing Keras takes.
    """
    sys.modules.update(dict.fromkeys(("IPython", "matplotlib", "pandas", "sklearn")))


if __name__ == "__main__":
    leave_out()
    del sys.argv[0]
    sys.path[0] = str(Path(sys.argv[0]).parent)  # as for a script that is run by itself
    runpy.run_path(sys.argv[0], run_name="__main__")
