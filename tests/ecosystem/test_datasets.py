"""datasets: mapping with tokenizer and callables in processes of their own, cached by their fingerprint."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.docs.engines import engine_code, remark

pytestmark = pytest.mark.ecosystem
WORKER = """
import sys
import datasets
import numpy as np
import longspan
from longspan.batch import Embed

datasets.disable_progress_bars()
tokenizer = longspan.AutoTokenizer.from_pretrained(sys.argv[1])
texts = ["one document", "another, longer document", "a third", "and a fourth"] * 2
data = datasets.Dataset.from_dict({"text": texts})

def encode(rows):
    return tokenizer(rows["text"], padding="max_length", max_length=12, truncation=True)

one, two = data.map(encode, batched=True), data.map(encode, batched=True, num_proc=2)
assert one["input_ids"][:] == two["input_ids"][:] == tokenizer(texts, padding="max_length", max_length=12)["input_ids"]
assert data.map(encode, batched=True)._fingerprint == one._fingerprint
model = longspan.AutoModel.from_pretrained(sys.argv[1])
batch = two.with_format("torch", columns=["input_ids", "attention_mask"])[:4]
assert model(**batch).last_hidden_state.shape == (4, 12, 384)
texts[6] = None  # not in the first batch of a worker: types are known all the same
data = datasets.Dataset.from_dict({"text": texts})
data = data.with_format("arrow")
found = data.map(Embed(sys.argv[1]), batched=True, batch_size=3, num_proc=2)
alone = Embed(sys.argv[1])({"text": texts})
assert found.with_format(None)["error"][:] == alone["error"] and alone["error"][6]
np.testing.assert_allclose(found.with_format("numpy")["embedding"][:], alone["embedding"], rtol=0, atol=1e-5)
again = data.map(Embed(sys.argv[1]), batched=True, batch_size=3, num_proc=2)
assert again._fingerprint == found._fingerprint
"""


def test_mapping_with_workers(minilm_dir, tmp_path):
    script = tmp_path / "script.py"
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "encoder").symlink_to(minilm_dir, target_is_directory=True)
    body = "\n".join("    " + line for line in f"{WORKER}{engine_code('datasets')}".splitlines())
    script.write_text(f"def main():\n{body}\n\nif __name__ == '__main__':\n    main()\n")
    path = os.pathsep.join([str(Path(sys.prefix) / "newest"), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, str(script), str(minilm_dir)],
        env={**os.environ, "PYTHONPATH": path, "HF_HOME": str(tmp_path / "home")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == remark("datasets")
