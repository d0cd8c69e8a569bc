"""Ray Data: embedding by two actors gives what one process gives, also where an actor dies."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.ecosystem
WORKER = """
import os
import sys
import numpy as np
import ray
from longspan.batch import Embed

model, mark = sys.argv[1:]
texts = [f"document {number} " + "of several words " * (number % 7) for number in range(120)]
texts[11] = None

class Mortal(Embed):
    # dies once, in the middle of the work
    def __call__(self, batch):
        if 57 in list(batch["id"]):
            try:
                os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                pass
            else:
                os._exit(1)
        return super().__call__(batch)

quiet = {"include_dashboard": False, "configure_logging": False, "log_to_driver": False}
ray.init(num_cpus=2, object_store_memory=200_000_000, **quiet)
rows = [{"id": number, "text": text} for number, text in enumerate(texts)]
mapped = ray.data.from_items(rows, override_num_blocks=6).map_batches(
    Mortal, fn_constructor_args=[model], batch_size=10, concurrency=2
)
found = sorted(mapped.take_all(), key=lambda row: row["id"])
assert [row["id"] for row in found] == list(range(120)), "a record was lost or doubled"
assert os.path.exists(mark), "no actor died"
alone = Embed(model)({"text": texts})
assert [row["error"] for row in found] == alone["error"]
assert found[11]["error"] and np.isnan(found[11]["embedding"]).all()
np.testing.assert_allclose(np.stack([row["embedding"] for row in found]), alone["embedding"], rtol=1e-4, atol=1e-6)
print("ok")
"""


def test_two_actors_of_which_one_dies(minilm_dir, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(WORKER)
    done = subprocess.run(
        [sys.executable, str(script), str(minilm_dir), str(tmp_path / "died")],
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": "/tmp", "RAY_DATA_DISABLE_PROGRESS_BARS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "ok\n" in done.stdout  # Ray writes there too
