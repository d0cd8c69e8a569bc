from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from longspan.documents.document import Document, LineMap, Problem
from longspan.documents.html import html_text
from longspan.documents.kinds import kind_of
from longspan.documents.readers import ReadOptions, read_documents
from longspan.documents.walk import SourceFile, find_files


def source(path: Path) -> SourceFile:
    return find_files([path]).files[0]


def read(path: Path, **options: object) -> list[Document | Problem]:
    return list(read_documents(source(path), ReadOptions(**options)))


def write(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def make_pdf(pages: list[str]) -> bytes:
    """A PDF file with one line of text a page."""
    count = len(pages)
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(count))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {count} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for index, text in enumerate(pages):
        stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET" if text else ""
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * index} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>"
        )
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    body, offsets = "%PDF-1.4\n", []
    for number, content in enumerate(objects, start=1):
        offsets.append(len(body))
        body += f"{number} 0 obj\n{content}\nendobj\n"
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    size = len(objects) + 1
    trailer = f"trailer << /Size {size} /Root 1 0 R >>\nstartxref\n{len(body)}\n%%EOF"
    return f"{body}xref\n0 {size}\n0000000000 65535 f \n{table}{trailer}".encode()


@pytest.mark.parametrize(
    ("text", "starts"),
    [("", [0]), ("a\nb", [0, 2]), ("a\r\nb\r\n", [0, 3, 6]), ("a\rb\n\nc", [0, 2, 4, 5]), ("\U0001f600\nx", [0, 2])],
)
def test_line_maps(text: str, starts: list[int]):
    lines = LineMap.of_text(text)
    assert lines.starts.tolist() == starts
    characters = np.arange(len(text), dtype=np.int64)
    expected = [sum(start <= c for start in starts) for c in characters]
    assert lines.numbers_at(characters).tolist() == expected


def test_text_is_kept_as_it_is(tmp_path: Path):
    (document,) = read(write(tmp_path / "a.txt", "one\r\ntwo\rthree\n"))
    assert document.text == "one\r\ntwo\rthree\n"
    assert document.unit == "line"


def test_python_files_follow_their_declaration(tmp_path: Path):
    (document,) = read(write(tmp_path / "a.py", "# coding: koi8-r\n# кот\n".encode("koi8-r")))
    assert document.text.endswith("# кот\n")
    assert document.notes == ()


HTML = """<!DOCTYPE html><html><head><title>Log files</title>
<style>p { color: red }</style><script>var x = "<p>not text</p>";</script></head>
<body><h1>Rotate   your
logs</h1>
<p>Open <b>the</b> file&nbsp;&amp; read<br>it.</p><!-- hidden -->
<ul><li>one<li>two</ul>
<pre>
  code  here
    more
</pre>
<table><tr><td>a</td><td>b</td></tr></table>
</body></html>"""


def test_html_text_and_its_source_lines():
    text, lines = html_text(HTML)
    assert text == ("Log files\nRotate your logs\nOpen the file & read\nit.\none\ntwo\n  code  here\n    more\na b")
    for word, number in [
        ("Log", 1),
        ("Rotate", 3),
        ("logs", 4),
        ("Open", 5),
        ("two", 6),
        ("code", 8),
        ("more", 9),
        ("b", 11),
    ]:
        position = np.array([text.rindex(word)])
        assert lines.numbers_at(position).tolist() == [number], word


@pytest.mark.parametrize(
    "markup", ["", "<", "<p", "&", "<script>never closed", "</p></p></script>", "<![CDATA[x", "a<b>c"]
)
def test_broken_html_is_read_as_far_as_it_goes(markup: str):
    text, lines = html_text(markup)
    assert len(lines.starts) == len(lines.numbers)
    assert "never closed" not in text


def test_html_files(tmp_path: Path):
    (document,) = read(write(tmp_path / "a.html", '<meta charset="koi8-r"><p>кот'.encode("koi8-r")))
    assert document.text == "кот"


def test_pdf_text_by_page(tmp_path: Path):
    (document,) = read(write(tmp_path / "a.pdf", make_pdf(["Rotate the logs", "", "Open the file"])))
    assert document.unit == "page"
    assert document.text.split("\f") == ["Rotate the logs", "", "Open the file"]
    positions = np.array([0, document.text.index("Open"), len(document.text) - 1])
    assert document.lines.numbers_at(positions).tolist() == [1, 3, 3]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (make_pdf(["", ""]), "PDF of 2 pages without text (scanned pages need OCR first)"),
        (make_pdf(["text"])[:200], "damaged PDF ("),
        (b"", "damaged PDF ("),
    ],
)
def test_bad_pdfs(tmp_path: Path, data: bytes, reason: str):
    (problem,) = read(write(tmp_path / "a.pdf", data))
    assert problem.reason.startswith(reason)


def test_encrypted_pdf(tmp_path: Path):
    import io

    import pypdf

    writer = pypdf.PdfWriter(clone_from=io.BytesIO(make_pdf(["secret"])))
    writer.encrypt("password", algorithm="RC4-128")
    with (tmp_path / "a.pdf").open("wb") as file:
        writer.write(file)
    (problem,) = read(tmp_path / "a.pdf")
    assert problem.reason == "encrypted PDF, needs a password"


def test_pdf_without_pypdf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "pypdf", None)
    (problem,) = read(write(tmp_path / "a.pdf", make_pdf(["text"])))
    assert problem.reason == "reading PDF needs pypdf: pip install 'longspan[documents]'"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": 1}', "field 'text' must be a string. Received: int"),
        ("[1]", "no field 'text'; the record has a JSON list"),
        ("{}", "no field 'text'; the record has no field"),
        ('{"text": "a"} x', "no valid JSON: Extra data (column 15)"),
        (b'{"text": "\xff"}', "no valid UTF-8 (byte 10 of the line)"),
        ("[" * 100_000, "no valid JSON: nested too deeply"),
    ],
)
def test_bad_json_lines(tmp_path: Path, line: str | bytes, reason: str):
    data = line.encode() if isinstance(line, str) else line
    first, problem, last = read(write(tmp_path / "a.jsonl", b'{"text": "a"}\n' + data + b'\n{"text": "b"}'))
    assert (first.text, last.text) == ("a", "b")
    assert (problem.reason, problem.line) == (reason, 2)
    assert last.lines.numbers_at(np.zeros(1, np.int64)).tolist() == [3]


def test_json_lines_with_marks_and_surrogates(tmp_path: Path):
    (document,) = read(write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "a\\ud800b"}\n\n'))
    assert document.text == "a\ufffdb"


def test_limits(tmp_path: Path):
    (problem,) = read(write(tmp_path / "a.txt", "x" * 101), max_bytes=100)
    assert problem.reason == "larger than the limit of 100 bytes"
    lines = '{"text": "a"}\n' + '{"text": "' + "x" * 100 + '"}\n{"text": "b"}\n'
    first, problem = read(write(tmp_path / "a.jsonl", lines), max_bytes=100)
    assert first.text == "a"
    assert (problem.reason, problem.line) == ("longer than the limit of 100 bytes", 2)


def test_compressed_bombs_stop_at_the_limit(tmp_path: Path):
    (problem,) = read(write(tmp_path / "a.txt.gz", gzip.compress(bytes(10_000_000))), max_bytes=1000)
    assert problem.reason == "larger than the limit of 1,000 bytes"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.txt", "text"),
        ("A.MD", "text"),
        ("a.py", "python"),
        ("a.htm", "html"),
        ("a.pdf.gz", "pdf"),
        ("a.ndjson", "jsonl"),
        ("README", "text"),
        ("Makefile", "text"),
        ("a.png", None),
        ("a.gz", None),
        ("data", None),
        ("a.tar.gz", None),
    ],
)
def test_kinds(name: str, kind: str | None):
    assert kind_of(name) == kind
