"""Runs the Keras half in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

#: runs a script without what Keras imports only if it is there
LEAN = Path(__file__).parents[1] / "lean.py"


def run_alone(directory: Path, *blocked: str) -> str:
    """The last line that `alone_worker.py` prints, with packages out of reach."""
    command = [sys.executable, LEAN, Path(__file__).with_name("alone_worker.py"), directory, *blocked]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1]
