"""Every example of the specification has a page, which runs and prints what it says."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest
from tests.docs.stand_ins import make_cache

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(path for path in (DOCS / "examples").glob("x*.md") if not path.name.endswith(".zh.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", flags=re.M | re.S)


def blocks(path):
    return BLOCK.findall(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def hub(tmp_path_factory, minilm_dir):
    """A hub cache with a stand-in for each name, and no network."""
    cache = tmp_path_factory.mktemp("hub")
    make_cache(cache, minilm_dir)

    def no_network(*arguments, **keywords):
        raise AssertionError("the network was used")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
        patch.setattr(socket, "create_connection", no_network)
        yield cache


@pytest.mark.filterwarnings("ignore:.*newly initialized")
@pytest.mark.filterwarnings("ignore:.*initialised")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_prints_what_it_says(page, hub, capsys):
    ((language, code),) = blocks(page)
    assert language == "python"
    exec(compile(code, page.name, "exec"), {})
    said = [line.partition("  # ")[2] for line in code.splitlines() if line.startswith("print(")]
    assert said
    assert capsys.readouterr().out.splitlines() == said


def test_all_examples_have_a_page():
    assert [page.name[:3] for page in PAGES] == [f"x{number:02d}" for number in range(1, 24)]


def test_the_readme_is_short_and_its_translation_leads_somewhere():
    for name in ("README.md", "README.zh.md"):
        text = (DOCS.parent / name).read_text(encoding="utf-8")
        assert text.count("\n") <= 150, name
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (DOCS.parent / target).exists(), target
