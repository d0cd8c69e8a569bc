"""A notebook that nbclient executes: models and pipelines work in its cells, and progress is drawn."""

from __future__ import annotations

import nbformat
import pytest
from nbconvert.preprocessors import ExecutePreprocessor

pytestmark = [pytest.mark.ecosystem, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of ports and loops

MAKE = """
from pathlib import Path
import longspan
words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c"]
Path("vocab.txt").write_text("\\n".join(words) + "\\n")
Path("tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
sizes = dict(vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=20)
longspan.BertForSequenceClassification(longspan.BertConfig(**sizes)).save_pretrained(".")
"""
CLASSIFY = """
pipe = longspan.pipeline("text-classification", model=".")
[row["label"][:6] for row in pipe(["a b c"] * 6, show_progress=True)]
"""


def test_cells_run_and_progress_is_drawn(tmp_path):
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in (MAKE, CLASSIFY)])
    runner = ExecutePreprocessor(timeout=120, kernel_name="python3")
    runner.preprocess(book, {"metadata": {"path": str(tmp_path)}})
    outputs = book.cells[1].outputs
    results = [output.data["text/plain"] for output in outputs if output.output_type == "execute_result"]
    assert results == [str(["LABEL_"] * 6)]
    drawn = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "6/6" in drawn
    assert "tokens" in drawn
