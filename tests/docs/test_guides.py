"""The code of the guides runs, and prints or raises what it says; names in their tables exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from tests.docs.engines import ENGINES
from tests.docs.test_examples import blocks, hub  # noqa: F401 - a fixture
from tests.documents.test_readers import make_pdf
from tests.pipelines.planted import make_finder

import longspan
from longspan.cli.main import app
from longspan.cli.running import run
from longspan.errors import LongspanError
from longspan.remedies import remedies

DOCS = Path(__file__).parents[2] / "docs"
GUIDES = sorted(path for path in (DOCS / "guides").glob("*.md") if not path.name.endswith(".zh.md"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, minilm_dir):
    """A working directory with what the guides name."""
    folder = tmp_path_factory.mktemp("guides")
    (folder / "models").mkdir()
    (folder / "models" / "encoder").symlink_to(minilm_dir, target_is_directory=True)
    for name, task in (("tag", "token-classification"), ("answer", "question-answering")):
        make_finder(folder / "models" / name, task)
    pages = ["Shipping takes three days.", "The warranty is valid for two years.", "Payment is due in thirty days."]
    (folder / "report.pdf").write_bytes(make_pdf(pages))
    return folder


def run_python(code, page, names, capsys):
    """Run a block after those before it: it prints what its remarks say, or raises what its last line says."""
    raised = re.fullmatch(r"# (\w+Error): (.*)", code.rstrip().splitlines()[-1])
    capsys.readouterr()
    if raised:
        with pytest.raises(LongspanError, match=re.escape(raised.group(2))) as found:
            exec(compile(code, page.name, "exec"), names)
        assert type(found.value).__name__ == raised.group(1)
        # the section before the code is the one that the error names
        text = page.read_text(encoding="utf-8")
        heading = re.findall(r"^## (.*)$", text[: text.index(code)], flags=re.M)[-1]
        assert next(one.heading for one in remedies() if one.topic == found.value.topic) == heading
        return
    exec(compile(code, page.name, "exec"), names)
    said = [line.partition("  # ")[2] for line in code.splitlines() if line.lstrip().startswith("print(")]
    assert capsys.readouterr().out.splitlines() == said


@pytest.mark.filterwarnings("ignore:.*newly initialized")
@pytest.mark.filterwarnings("ignore:.*initialised")
@pytest.mark.filterwarnings("ignore:.*httpx")  # the test client of FastAPI prefers another one
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the other libraries that the guides come from
@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_code_runs(page, folder, hub, monkeypatch, capsys):  # noqa: F811 - the fixture
    monkeypatch.chdir(folder)
    names: dict[str, object] = {"__name__": page.stem}
    for language, code in blocks(page):
        if language == "python":
            run_python(code, page, names, capsys)
        elif language == "console":
            for line in code.splitlines():
                assert run(app, shlex.split(line)[1:]) == 0, capsys.readouterr().err
    if page.stem == "01-ten-minutes":
        assert run(app, ["search", "index.parquet", "how long is the warranty?", "--json"]) == 0
        assert "two years" in capsys.readouterr().out.splitlines()[0]


def test_every_guide_has_code_and_says_what_to_do_next():
    assert len(GUIDES) == 11
    for page in GUIDES:
        assert blocks(page), page.name
        last = page.read_text(encoding="utf-8").rpartition("\n## ")[2]
        assert page.stem == "10-troubleshooting" or (last.startswith("Next\n") and "](" in last), page.name


def test_code_that_runs_elsewhere_is_that_of_engines():
    """No other block is left out: `text` would be shown and not run."""
    languages = [(language, page.stem) for page in GUIDES for language, _ in blocks(page)]
    assert {language for language, _ in languages} == {"bash", "console", "py", "python"}
    assert [stem for language, stem in languages if language == "py"] == ["11-scale"] * 3
    assert list(ENGINES) == ["Ray Data", "datasets", "Spark"]


def test_names_in_tables_exist():
    text = "".join(page.read_text(encoding="utf-8") for page in GUIDES)
    imported = re.findall(r"from longspan import (\w+)`", text)
    classes = re.findall(r"\| `((?:TF|Flax)?[A-Z]\w+)\.from_pretrained\(", text)
    assert len(imported) > 8
    assert len(classes) >= 3
    for name in imported + classes:
        assert hasattr(longspan, name), name
