from __future__ import annotations

import gzip
import time
from pathlib import Path

import numpy as np
import pytest

from longspan.documents import isolated
from longspan.documents.document import Document, LineMap, Problem, UnreadableError
from longspan.documents.html import html_text
from longspan.documents.kinds import kind_of
from longspan.documents.limits import ReadLimits, parse_limits
from longspan.documents.readers import ReadOptions, read_documents
from longspan.documents.walk import Filters, SourceFile, find_files
from longspan.errors import InputError


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
    "markup",
    [
        '<a b="',
        "<a b='>' c",
        "<!--",
        "<![CDATA[x>y",
        "</",
        "<?x",
        "",
        "<",
        "<p",
        "&",
        "<script>never closed",
        "</p></p></script>",
        "<![CDATA[x",
        "a<b>c",
    ],
)
def test_broken_html_is_read_as_far_as_it_goes(markup: str):
    text, lines = html_text(markup)
    assert len(lines.starts) == len(lines.numbers)
    assert "never closed" not in text


@pytest.mark.parametrize(
    "markup",
    ["<a ", "<!-- ", '<a b="', "<a b='>\"", '<a b=">"', "<![CDATA[", "<?", "</", "<!", "<script>", "&#", "=", "<a ="],
)
def test_html_takes_time_linear_in_its_length(markup: str):
    start = time.process_time()
    html_text(markup * 60_000)
    assert time.process_time() - start < 4  # parsers that begin such searches anew take hours


def test_html_stops_at_its_limit_of_time():
    with pytest.raises(UnreadableError, match="takes longer than the limit of 0.0 seconds"):
        html_text("<p>x" * 10, max_seconds=0.0)


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


def test_a_worker_that_ended_is_replaced(tmp_path: Path):
    pdf = write(tmp_path / "a.pdf", make_pdf(["text"]))
    read(pdf)
    (worker,) = isolated._idle
    worker._process.kill()
    worker._process.wait()
    assert read(pdf)[0].text == "text"


def test_a_pdf_that_takes_too_long(tmp_path: Path):
    pdf = write(tmp_path / "a.pdf", make_pdf(["[" * 3000] * 3000))
    (problem,) = read(pdf, limits=ReadLimits(seconds=1))
    assert problem.reason == "takes longer than the limit of 1 seconds"


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


def test_json_lines_follow_their_mark(tmp_path: Path):
    text = '{"text": "naïve 日本語"}\n\n{"text": broken}\n{"text": "\U0001f600 b"}'
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"):
        mark = "\ufeff" if encoding[-2:] in ("le", "be") else ""
        first, problem, last = read(write(tmp_path / "a.jsonl", (mark + text).encode(encoding)))
        assert (first.text, last.text) == ("naïve 日本語", "\U0001f600 b"), encoding
        assert (problem.line, problem.reason) == (3, "no valid JSON: Expecting value (column 10)")


def test_xml_follows_its_declaration(tmp_path: Path):
    markup = "<?xml version='1.0' encoding='{}'?><html><body><p>日本語</p></body></html>"
    for name in ("a.xhtml", "a.xml"):
        (document,) = read(write(tmp_path / name, markup.format("Shift_JIS").encode("shift_jis")))
        assert "日本語" in document.text
        assert document.notes == ()
        (document,) = read(write(tmp_path / name, markup.format("undefined").encode()))
        assert "日本語" in document.text


def test_csv_in_other_encodings(tmp_path: Path):
    table = "text,note\n“open—file”,5 €\n"
    (document,) = read_tables(write(tmp_path / "a.csv", table.encode("cp1252")))
    assert (document.text, document.notes) == ("“open—file”", ("not UTF-8, read as cp1252",))
    rows = "text\n" + "plain words of a line, in a row of one cell\n" * 25_000 + "これは日本語の文章です。\n"
    *_, last = read_tables(write(tmp_path / "b.csv", rows.encode("shift_jis")))
    assert last.text == "これは日本語の文章です。"
    (document,) = read_tables(write(tmp_path / "c.csv", table.encode("utf-16")))
    assert (document.text, document.notes) == ("“open—file”", ())


def read_tables(path: Path, **limits: int) -> list[Document | Problem]:
    (file,) = find_files([path], Filters(tables=True)).files
    return list(read_documents(file, ReadOptions(limits=ReadLimits(**limits))))


def limited(path: Path, **limits: int) -> list[Document | Problem]:
    return read(path, limits=ReadLimits(**limits))


def test_limits(tmp_path: Path):
    (problem,) = limited(write(tmp_path / "a.txt", "x" * 101), bytes=100)
    assert problem.reason == "larger than the limit of 100 bytes"
    lines = '{"text": "a"}\n' + '{"text": "' + "x" * 1000 + '"}\n{"text": "b"}\n'
    first, problem, last = limited(write(tmp_path / "a.jsonl", lines), record_bytes=100)
    assert (first.text, last.text) == ("a", "b")
    assert (problem.reason, problem.line) == ("longer than the limit of 100 bytes a record", 2)
    wide = '{"text": "a", "x": [' + ",".join("0" * 50) + "]}"
    (problem,) = limited(write(tmp_path / "b.jsonl", wide), cells=20)
    assert (problem.reason, problem.line) == ("more values than the limit of 20 cells", 1)


def test_digits_beyond_what_python_converts(tmp_path: Path):
    lines = '{"text": "a"}\n{"text": "x", "n": ' + "9" * 5000 + '}\n{"text": "b"}\n'
    first, problem, last = read(write(tmp_path / "a.jsonl", lines))
    assert (first.text, last.text) == ("a", "b")
    assert problem.reason.startswith("no valid JSON: Exceeds the limit (4300 digits)")


def test_compressed_bombs_stop_at_the_limit(tmp_path: Path):
    path = write(tmp_path / "a.txt.gz", gzip.compress(bytes(10_000_000)))
    assert limited(path, bytes=1000)[0].reason == "larger than the limit of 1,000 bytes"
    rows = b"text\n" + b"x\n" * 1_000_000
    path = write(tmp_path / "a.csv.gz", gzip.compress(rows))
    allowed = 10 * path.stat().st_size
    (problem,) = read_tables(path, bytes=1000, expansion=10)
    assert problem.reason == f"larger than the limit of {allowed:,} bytes"
    path = write(tmp_path / "a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 100_000))
    *documents, problem = limited(path, bytes=1000, expansion=10)
    assert all(document.text == "x" for document in documents)
    assert problem.reason == f"larger than the limit of {10 * path.stat().st_size:,} bytes"


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_blank_lines_stop_at_the_limit_of_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    record = b'{"text": "x"}\n' if name == "a.jsonl" else b"text\nx\n"
    path = write(tmp_path / name, record + b"\n" * 100_000 + record)
    assert read_tables(path)[0].text == read_tables(path)[-1].text.replace("text", "x") == "x"
    monkeypatch.setattr(time, "monotonic", iter(range(10_000)).__next__)
    first, problem = read_tables(path, seconds=2)
    assert (first.text, problem.reason) == ("x", "takes longer than the limit of 2 seconds")


def test_limits_of_rows_and_pages(tmp_path: Path):
    (problem,) = read_tables(write(tmp_path / "a.csv", "text\n" + "x" * 200), record_bytes=100)
    assert (problem.reason, problem.line) == ("longer than the limit of 100 bytes a record", 2)
    (problem,) = read_tables(write(tmp_path / "b.csv", "text" + "," * 30 + "\nx\n"), cells=20)
    assert problem.reason == "more cells in a row than the limit of 20 cells"
    (problem,) = limited(write(tmp_path / "a.pdf", make_pdf(["a", "b", "c"])), pages=2)
    assert problem.reason == "has 3 pages, above the limit of 2 pages"


def test_limits_of_a_command_line():
    assert parse_limits(["bytes=1.5k", "seconds=7"]) == ReadLimits(bytes=1536, seconds=7)
    assert parse_limits([]) == ReadLimits()
    with pytest.raises(InputError, match="A limit must be NAME=NUMBER, of bytes, record_bytes, .*. Received: size=3"):
        parse_limits(["size=3"])
    with pytest.raises(InputError, match="A limit must be at least 1. Received: pages=0"):
        parse_limits(["pages=0"])


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
