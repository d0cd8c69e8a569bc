"""The Python of pages outside of examples and guides runs: here, or in the tests of what a page is about."""

from __future__ import annotations

import pytest
from tests.docs.test_examples import blocks
from tests.docs.test_translations import ROOT
from tests.tiny_encoder import make_sentence_model

import longspan
from longspan.embeddings.embed_files import embed_files
from longspan.embeddings.sentence_encoder import SentenceEncoder

DOCS = ROOT / "docs"
#: page -> which of its blocks run here
HERE = {"index.md": 0, "longformer.md": 0, "longt5.md": 0, "mega.md": 1, "roberta.md": 0, "embed.md": 0}
#: page -> the test that runs its blocks, or the calls that they show where these want processes or other tools
ELSEWHERE = {
    "diffllama.md": "tests/models/test_diffllama_torch.py",
    "ecosystem.md": "tests/ecosystem/test_trainer.py",
    "flax.md": "tests/models/test_flax_docs.py",
    "generation.md": "tests/generation/test_docs.py",
    "keras.md": "tests/keras/test_contract.py",
    "linen_and_nnx.md": "tests/models/test_flax_docs.py",
    "parallel.md": "tests/parallel",
    "tasks.md": "tests/contract/test_tasks_doc.py",
    "tour.md": "tests/contract/test_tour.py",
    "training.md": "tests/training/test_docs.py",
}


def python_of(page):
    return [code for language, code in blocks(DOCS / page) if language == "python"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working directory with what the pages name."""
    folder = tmp_path_factory.mktemp("pages")
    settings = {"vocab_size": 20, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    config = longspan.XLMRobertaConfig(**settings, intermediate_size=8, num_labels=9)
    longspan.XLMRobertaForTokenClassification(config).save_pretrained(folder / "path" / "to" / "xlm-roberta")
    for name in ("logs", "other"):
        (folder / f"{name}.md").write_text("rotate the log files at midnight\n")
    encoder = SentenceEncoder(make_sentence_model(folder / "encoder"))
    embed_files([folder / "logs.md", folder / "other.md"], folder / "index.parquet", encoder=encoder)
    return folder


@pytest.mark.parametrize("page", HERE)
def test_blocks_run(page, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    code = python_of(page)[HERE[page]]
    exec(compile(code, page, "exec"), names)
    said = [line.partition("  # ")[2] for line in code.splitlines() if line.startswith("print(")]
    assert capsys.readouterr().out.splitlines() == said
    if page == "embed.md":
        assert [match.hit.file.path.rpartition("/")[2] for match in names["matches"][0]] == ["logs.md", "other.md"]


def test_every_block_has_a_place_where_it_runs():
    pages = {page.name for page in DOCS.glob("*.md") if ".zh." not in page.name and python_of(page.name)}
    assert pages <= {*HERE, *ELSEWHERE}
    for page, place in ELSEWHERE.items():
        assert (ROOT / place).exists(), page
