"""Programs that tests start, and all that these start, end with the test."""

import sys
import time
from pathlib import Path

import psutil
import pytest
from tests.processes import run_group

#: leaves a process behind that holds what the program wrote to, and goes on
LEAVES = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("left", child.pid, flush=True)
print("a word of errors", file=sys.stderr)
time.sleep(float(sys.argv[1]))
sys.exit(3)
"""


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def await_end(pid: int) -> None:
    for _ in range(500):
        if not is_running(pid):
            return
        time.sleep(0.01)
    raise AssertionError("what the program has left runs on")


def test_what_a_program_leaves_is_ended(tmp_path: Path):
    done = run_group([sys.executable, "-c", LEAVES, "0"], timeout=60, cwd=tmp_path)
    word, pid = done.stdout.split()
    assert (word, done.returncode, done.stderr) == ("left", 3, "a word of errors\n")
    await_end(int(pid))


def test_who_takes_too_long_is_ended_and_what_it_said_is_told():
    with pytest.raises(AssertionError, match=r"more than 2 s:\nleft \d+\n\na word of errors") as caught:
        run_group([sys.executable, "-c", LEAVES, "600"], timeout=2)
    await_end(int(str(caught.value).split("left ")[1].split()[0]))
