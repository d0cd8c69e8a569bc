"""The tour of the code leads to the lines that it names, in both languages, and its example runs."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import tour_lines

TOURS = {name: (ROOT / name).read_text(encoding="utf-8") for name in tour_lines.PAGES}
LINKS = {name: tour_lines.LINK.findall(text) for name, text in TOURS.items()}
ALL_LINKS = sorted({link for links in LINKS.values() for link in links})


@pytest.mark.parametrize(("name", "path", "line"), ALL_LINKS, ids=[name for name, _, _ in ALL_LINKS])
def test_every_link_goes_to_a_definition(name, path, line):
    defined = tour_lines.lines_that_define(name, path)
    assert int(line) in defined, (
        f"{name} is defined in {path} at line {defined}. The tour says: {line} (scripts/tour_lines.py mends it)"
    )


@pytest.mark.parametrize("page", TOURS)
def test_all_links_are_checked_and_stops_are_few(page):
    assert len(LINKS[page]) == TOURS[page].count("](../src/") >= 15
    assert len(re.findall(r"^\*\*\d\. ", TOURS[page], flags=re.MULTILINE)) <= 8


def test_a_link_goes_to_the_nearest_definition(monkeypatch, tmp_path):
    source = ["", "class One:", "    def run(self): ...", "", "", "class Two:", "    def run(self): ..."]
    (tmp_path / "code.py").write_text("\n".join(source), encoding="utf-8")
    monkeypatch.setattr(tour_lines, "ROOT", tmp_path)

    def led(name, line):
        return tour_lines.LINK.sub(tour_lines.linked_line, f"see [`{name}`](../code.py#L{line}).")

    for line, nearest in ((1, 3), (3, 3), (4, 3), (5, 3), (6, 7), (7, 7), (90, 7)):  # 5 lies between both
        assert led("run", line) == f"see [`run`](../code.py#L{nearest})."
    assert led("Two", 1) == "see [`Two`](../code.py#L6)."
    with pytest.raises(SystemExit, match="code.py does not define gone any more; the link says 4"):
        led("gone", 4)


def test_the_example_prints_what_it_says(capsys):
    code = re.search(r"```python\n(.*?)```", TOURS["docs/tour.md"], flags=re.DOTALL).group(1)
    exec(compile(code, "docs/tour.md", "exec"), {})
    assert capsys.readouterr().out == re.search(r"# (.*)\n$", code).group(1) + "\n"
