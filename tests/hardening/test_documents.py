"""Documents of every encoding and kind, whole and broken: the right characters at the right places, nothing mixed.

The truth of each case is known by how it is made: what is written is compared with what is read.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import os
import random
import threading
from html import escape
from pathlib import Path

import numpy as np
import pytest

from longspan.documents.document import Document, Problem
from longspan.documents.readers import ReadOptions, read_documents
from longspan.documents.walk import Filters, find_files

SCRIPTS = {
    "english": "It’s a file—open it “now” for 5 € only, then read the log.",
    "german": "Die Größe der Fußgängerbrücke über den Fluß beträgt 12 m.",
    "french": "Le café était fermé — “à côté” de l’hôtel. Cela coûte 5 €.",
    "polish": "Zażółć gęślą jaźń, to jest dłuższy tekst po polsku i jeszcze jedno zdanie.",
    "russian": "Это русский текст, длинный документ. Сегодня хорошая погода.",
    "greek": "Αυτό είναι ένα ελληνικό κείμενο για δοκιμή και άλλη μία πρόταση.",
    "japanese": "これは日本語の文章です。長い文書を読む。東京は晴れです。",
    "chinese": "这是一个中文文档，长文本的阅读。今天天气很好。",
    "taiwanese": "這是一個中文文件，長文本的閱讀。今天天氣很好。",
    "korean": "이것은 한국어 문서입니다. 오늘 날씨가 좋습니다.",
    "arabic": "هذا نص عربي طويل لاختبار الترميز والقراءة من اليمين إلى اليسار.",
    "hebrew": "זה טקסט בעברית לבדיקה של הקידוד, וזה עוד משפט אחד ארוך.",
    "emoji": "a 👩‍👩‍👧‍👦 family, a flag 🇯🇵 and 𝒻ancy 𠀀 letters",
}
ENCODINGS = {
    "english": ["cp1252"],
    "german": ["cp1252", "latin-1"],
    "french": ["cp1252"],
    "polish": ["cp1250"],
    "russian": ["cp1251", "koi8-r", "iso8859-5"],
    "greek": ["cp1253"],
    "japanese": ["shift_jis", "euc_jp", "iso2022_jp"],
    "chinese": ["gbk", "gb18030"],
    "taiwanese": ["big5"],
    "korean": ["euc_kr"],
    "hebrew": ["cp1255"],
}
MARKED = ["utf-8-sig", "utf-16", "utf-32"]
GUESSED = [(name, encoding) for name, encodings in ENCODINGS.items() for encoding in encodings]


@pytest.fixture(autouse=True)
def _count(figures, request):
    """Every case that ends without a failure has held."""
    figures.setdefault("cases", 0)
    figures.setdefault("held", 0)
    figures["cases"] += 1
    before = request.session.testsfailed
    yield
    figures["held"] += request.session.testsfailed == before


def read(path: Path, **options) -> list[Document | Problem]:
    (source,) = find_files([path], Filters(tables=True)).files
    return list(read_documents(source, ReadOptions(**options)))


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def texts(found: list[Document | Problem]) -> list[str]:
    return [item.text for item in found if isinstance(item, Document)]


def line_of(document: Document, word: str) -> int:
    return int(document.lines.numbers_at(np.array([document.text.index(word)]))[0])


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("encoding", ["utf-8", *MARKED])
def test_unicode_of_every_mark_in_every_kind(tmp_path, name, encoding):
    text = SCRIPTS[name]
    (document,) = read(write(tmp_path / "a.txt", f"first\r\n{text}\rlast\n".encode(encoding)))
    assert document.text == f"first\r\n{text}\rlast\n"
    assert (line_of(document, text), line_of(document, "last"), document.notes) == (2, 3, ())
    (document,) = read(write(tmp_path / "a.html", f"<p>first\n<p>{text}<p>last".encode(encoding)))
    assert document.text == f"first\n{text}\nlast"
    (document,) = read(write(tmp_path / "a.csv", f'text,n\n"{text}",1\n'.encode(encoding)))
    assert (document.text, document.record, document.notes) == (text, {"text": text, "n": "1"}, ())
    records = f'{json.dumps({"text": text}, ensure_ascii=False)}\n\nbroken\n{{"text": "b"}}'
    found = read(write(tmp_path / "a.jsonl", records.encode(encoding)))
    assert texts(found) == [text, "b"]
    assert (found[1].line, found[1].reason[:13]) == (3, "no valid JSON")


@pytest.mark.parametrize(("name", "encoding"), GUESSED)
@pytest.mark.parametrize("times", [1, 40])
def test_other_encodings_are_seen_in_every_kind(tmp_path, name, encoding, times):
    text = " ".join([SCRIPTS[name]] * times)
    stateful = encoding == "iso2022_jp"
    (document,) = read(write(tmp_path / "a.txt", f"first\n{text}\nlast\n".encode(encoding)))
    assert document.text == f"first\n{text}\nlast\n"
    assert stateful or document.notes[0].startswith("not UTF-8, read as")
    (document,) = read(write(tmp_path / "a.html", f"<p>first\n<p>{text}".encode(encoding)))
    assert document.text == f"first\n{text}"
    if not stateful:
        (document,) = read(write(tmp_path / "a.csv", f'text,n\n"{text}",1\n'.encode(encoding)))
        assert (document.text, document.notes[0][:18]) == (text, "not UTF-8, read as")


@pytest.mark.parametrize(("name", "encoding"), GUESSED)
def test_declared_encodings_need_no_guess(tmp_path, name, encoding):
    text = SCRIPTS[name]
    forms = {
        "a.html": f'<html><head><meta charset="{encoding}"></head><body><p>{text}',
        "b.html": f"<meta http-equiv='Content-Type' content='text/html; charset={encoding}'><p>{text}",
        "c.xhtml": f"<?xml version='1.0' encoding='{encoding}'?><html><p>{text}</p></html>",
        "d.xml": f'<?xml version="1.0" encoding="{encoding}" ?>\n<a>{text}</a>',
        "e.py": f"# -*- coding: {encoding} -*-\n# {text}\n",
    }
    for file, content in forms.items():
        (document,) = read(write(tmp_path / file, content.encode(encoding)))
        assert text in document.text, file
        assert document.notes == (), file


@pytest.mark.parametrize("seed", range(20))
def test_mixed_encodings_lose_nothing_that_fits(tmp_path, seed):
    draw = random.Random(seed)
    parts = draw.choices(["naïve ", "日本語 ", "Größe ", "привет ", "plain "], k=60)
    alien = {draw.randrange(60): draw.choice(["é", "—", "“", "€"]) for _ in range(draw.randint(1, 6))}
    data = b"".join(
        part.encode() + (alien[i].encode("cp1252") + b" " if i in alien else b"") for i, part in enumerate(parts)
    )
    expected = "".join(part + (alien[i] + " " if i in alien else "") for i, part in enumerate(parts))
    (document,) = read(write(tmp_path / "a.txt", data))
    assert document.text == expected
    assert document.notes == (f"{len(alien)} characters are no UTF-8, read as cp1252",)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_text_that_breaks_its_mark_is_named(tmp_path, encoding):
    mark = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE, "utf-32-le": codecs.BOM_UTF32_LE,
            "utf-32-be": codecs.BOM_UTF32_BE}[encoding]  # fmt: skip
    (problem,) = read(write(tmp_path / "a.txt", mark + "open".encode(encoding) + b"\x00"))
    assert problem.reason.startswith(f"its byte order mark says {encoding}")


ENTITIES = {"&amp;": "&", "&lt;b&gt;": "<b>", "&eacute;": "é", "&#233;": "é", "&#x1F600;": "😀", "&nbsp;x": " x",
            "&hellip;": "…", "&nosuchentity;": "&nosuchentity;", "&": "&", "&#0;": "\ufffd", "&#xD800;": "\ufffd",
            "&copy": "©", "a &lt b": "a < b", "&euro;5": "€5", "&#128;": "€", "&rlm;x": "\u200fx"}  # fmt: skip


@pytest.mark.parametrize("entity", ENTITIES)
def test_entities(tmp_path, entity):
    (document,) = read(write(tmp_path / "a.html", f"<p>one\n<p>two {entity}\n<p>three".encode()))
    assert document.text == f"one\ntwo {ENTITIES[entity].strip()}\nthree".replace("two  x", "two x")
    assert (line_of(document, "two"), line_of(document, "three")) == (2, 3)


BROKEN_PAGES = [
    ("<p>one<p>two", "one\ntwo"),
    ("<b><i>one</b>two</i>", "onetwo"),
    ("</p></div>one", "one"),
    ("<p title='a>b'>one", "one"),
    ('<p title="a>b" x=\'"\'>one', "one"),
    ("<p title=a>one</p >two", "one\ntwo"),
    ("<P>one</P\n>two", "one\ntwo"),
    ("one<!-- two -->three", "onethree"),
    ("one<!-->two", "onetwo"),
    ("one<!doctype x>two<?php x ?>three", "onetwothree"),
    ("one<script>a<b>c</script>two", "onetwo"),
    ("one<SCRIPT>'</script >'</SCRIPT>two", "one'two"),
    ("one<style>p{}</style>two", "onetwo"),
    ("one<svg><title>x</title></svg>two", "onetwo"),
    ("1 < 2 and 3 > 2", "1 < 2 and 3 > 2"),
    ("a<3", "a<3"),
    ("<pre>\n a\n  b\n</pre>c", " a\n  b\nc"),
    ("<td>a<td>b<tr><td>c", "a b\nc"),
    ("one<br>two<br/>three", "one\ntwo\nthree"),
    ("<a href=x", ""),
    ("one <a href='never closed>two</a> three", "one two three"),
    ("one<![CDATA[two]]>three", "onethree"),
    ("\ufeffone", "one"),
    ("", ""),
]


@pytest.mark.parametrize(("markup", "expected"), BROKEN_PAGES)
def test_broken_pages_are_read_as_browsers_read_them(tmp_path, markup, expected):
    (document,) = read(write(tmp_path / "a.html", markup.encode()))
    assert document.text == expected


@pytest.mark.parametrize("seed", range(10))
def test_lines_of_pages(tmp_path, seed):
    draw = random.Random(seed)
    markup, places = "", {}
    for number in range(200):
        gap = draw.choice(
            ["\n", "<br\n>", "<!--\n\n-->", "<p class='a\nb'>", "<script>\n1\n</script>", " ", "<hr/>", "\r\n"]
        )
        word = f"word{number:03}"
        markup += gap
        places[word] = markup.count("\n") + 1
        markup += f"<b>{word}</b> "
    (document,) = read(write(tmp_path / "a.html", markup.encode()))
    assert {word: line_of(document, word) for word in places} == places
    assert document.text.split() == list(places)


DIALECTS = [
    ("a.csv", ",", "\n", csv.QUOTE_MINIMAL),
    ("a.csv", ",", "\r\n", csv.QUOTE_ALL),
    ("a.csv", ",", "\r", csv.QUOTE_NONNUMERIC),
    ("a.tsv", "\t", "\n", csv.QUOTE_MINIMAL),
    ("a.tsv", "\t", "\r\n", csv.QUOTE_ALL),
]


@pytest.mark.parametrize(("name", "delimiter", "terminator", "quoting"), DIALECTS)
@pytest.mark.parametrize("seed", range(3))
def test_csv_dialects(tmp_path, name, delimiter, terminator, quoting, seed):
    draw = random.Random(seed)
    cells = ["plain", "", 'a "quoted" cell', "line\nline", "a,b", "tab\tx", *SCRIPTS.values(), "=1+1", "x" * 200_000]
    rows = [[draw.choice(cells) or "x", draw.choice(cells)] for _ in range(50)]
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter, lineterminator=terminator, quoting=quoting)
    writer.writerows([["text", "note"], *rows])
    found = read(write(tmp_path / name, out.getvalue().encode()))
    assert [item.record for item in found] == [{"text": text, "note": note} for text, note in rows]


@pytest.mark.parametrize(
    ("rows", "good", "bad"),
    [
        ("text\na,b\nc\n", ["c"], {2: "more cells than the 1 columns"}),
        ("text,n\na\nb,1\n", ["a", "b"], {}),
        ("n\n1\n", [], {2: "no field 'text'"}),
        ("\n\ntext\na\n", ["a"], {}),
        ("text\n\na\n\n", ["a"], {}),
        ('text\n"never closed\na\n', ["never closed\na\n"], {}),
        ("text,text\na,b\n", ["b"], {}),
        ("", [], {None: "a table without a header"}),
    ],
)
def test_unusual_tables(tmp_path, rows, good, bad):
    found = read(write(tmp_path / "a.csv", rows.encode()))
    assert texts(found) == good
    problems = {item.line: item.reason for item in found if isinstance(item, Problem)}
    assert problems.keys() == bad.keys()
    assert all(problems[line].startswith(reason) for line, reason in bad.items())


BAD_LINES = ["{", "[]", '""', "null", "1", "NaN", '{"text": null}', '{"text": ["a"]}', '{"text": 1e999}',
             '{"other": "a"}',
             '{"text": "a"', "{'text': 'a'}", '{"text": "a"}}', '{"text": "\\x"}', '{"text": "\\ud8', "\x00", "\x1b[2J",
             '{"text": ' + "9" * 5000 + "}", "[" * 5000, '{"a":' * 5000]  # fmt: skip
GOOD_LINES = ['{"text": "a", "n": NaN}', '{"text": "a", "n": [null, {}, -Infinity]}', '  {"text": "a"}  ',
              '{"text": "a"}\r',
              '{"text": "b", "text": "a"}', '{"text": "\\u0061"}']  # fmt: skip


@pytest.mark.parametrize("bad", range(len(BAD_LINES)))
def test_a_bad_record_is_named_and_its_neighbours_are_read(tmp_path, bad):
    lines = ['{"text": "first"}', "", BAD_LINES[bad], "   ", *GOOD_LINES, '{"text": "last"}']
    found = read(write(tmp_path / "a.jsonl", "\n".join(lines).encode()))
    assert texts(found) == ["first", *["a"] * len(GOOD_LINES), "last"]
    assert [item.line for item in found if isinstance(item, Problem)] == [3]
    assert int(found[-1].lines.numbers[0]) == len(lines)


def test_json_values_that_are_no_numbers_are_kept(tmp_path):
    (document,) = read(write(tmp_path / "a.jsonl", GOOD_LINES[0].encode()))
    assert math.isnan(document.record["n"])


def test_parquet_columns_of_every_type(tmp_path):
    import datetime
    import decimal

    import pyarrow as pa
    import pyarrow.parquet as pq

    moment = datetime.datetime(2026, 11, 29, 8, 30)
    rows = [
        {
            "text": "a",
            "nested": {"body": "inner", "list": [[1, None], []]},
            "when": moment,
            "cost": decimal.Decimal("1.50"),
        },
        {"text": None, "nested": None, "when": None, "cost": None},
        {
            "text": SCRIPTS["emoji"],
            "nested": {"body": "two", "list": []},
            "when": moment,
            "cost": decimal.Decimal("2.00"),
        },
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    first, problem, last = read(tmp_path / "a.parquet")
    assert (first.text, last.text) == ("a", SCRIPTS["emoji"])
    assert first.record["nested"] == {"body": "inner", "list": [[1, None], []]}
    assert (problem.line, problem.reason) == (2, "no field 'text'; the record has no field")
    found = read(tmp_path / "a.parquet", text_field="nested.body")
    assert texts(found) == ["inner", "two"]


def test_long_tables(tmp_path, is_long):
    import pyarrow as pa
    import pyarrow.parquet as pq

    count = 200_000 if is_long else 5_000
    rows = [f"row {number} é" for number in range(count)]
    pq.write_table(pa.table({"text": rows}), tmp_path / "a.parquet")
    write(tmp_path / "a.csv", ("text\n" + "\n".join(rows)).encode())
    write(tmp_path / "a.jsonl", "\n".join(json.dumps({"text": row}) for row in rows).encode())
    for name in ("a.parquet", "a.csv", "a.jsonl"):
        assert texts(read(tmp_path / name)) == rows, name


NAMES = [b"line\nbreak.txt", b"\x1b[31mred.txt", b"caf\xe9.txt", b"bell\x07.txt", "日本語.txt".encode(), b"-rf.txt",
         b"a b.txt",
         b"=cmd.txt", "rtl\u202etxt.txt".encode(), b"'quote\".txt", b"%s.txt", b"*.txt"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_that_are_no_plain_text(tmp_path, name):
    path = os.fsencode(tmp_path) + b"/" + name
    Path(os.fsdecode(path)).write_text("open the file")
    (source,) = find_files([tmp_path]).files
    (document,) = read_documents(source)
    assert document.text == "open the file"
    source.name.encode("utf-8")  # can be stored anywhere
    bad = Path(os.fsdecode(path))
    bad.write_bytes(b"\x00")
    (problem,) = read_documents(source)
    assert problem.path == source.name


def test_what_is_no_regular_file_blocks_nothing(tmp_path):
    (tmp_path / "good.txt").write_text("good")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "pipe_link.txt").symlink_to("pipe.txt")
    (tmp_path / "null.txt").symlink_to("/dev/null")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    (tmp_path / "tty.txt").symlink_to("/dev/tty")
    (tmp_path / "self.txt").symlink_to("self.txt")
    (tmp_path / "one.txt").symlink_to("two.txt")
    (tmp_path / "two.txt").symlink_to("one.txt")
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "folder.txt" / "up").symlink_to(tmp_path)
    found = find_files([tmp_path], Filters(follow_links=True))
    assert [source.path.name for source in found.files] == ["good.txt"]
    reasons = {Path(problem.path).name: problem.reason for problem in found.problems}
    assert reasons == {
        **dict.fromkeys(["null.txt", "pipe.txt", "pipe_link.txt", "tty.txt", "zero.txt"], "not a regular file"),
        **dict.fromkeys(["one.txt", "self.txt", "two.txt"], "link to nothing"),
    }


def test_a_pipe_that_takes_the_place_of_a_file_blocks_nothing(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("good")
    (source,) = find_files([path]).files
    path.unlink()
    os.mkfifo(path)
    found: list[Document | Problem] = []
    reader = threading.Thread(target=lambda: found.extend(read_documents(source)), daemon=True)
    reader.start()
    reader.join(10)
    assert [item.reason for item in found] == ["not a regular file"]


@pytest.mark.parametrize("seed", range(8))
def test_right_to_left_and_emoji_offsets(tmp_path, seed):
    draw = random.Random(seed)
    words = [draw.choice(" ".join(SCRIPTS.values()).split()) for _ in range(300)]
    text = "".join(word + draw.choice([" ", "\n", "\r\n", "\u2028", "\t"]) for word in words)
    (document,) = read(write(tmp_path / "a.md", text.encode()))
    assert document.text == text
    starts = np.cumsum([0, *(len(part) for part in text.replace("\r\n", "\r\r").replace("\n", "\r").split("\r"))])
    position = draw.randrange(len(text))
    before = text[:position].replace("\r\n", "\n").replace("\r", "\n").count("\n")
    cut_pair = position > 0 and text[position - 1 : position + 1] == "\r\n"
    assert document.lines.numbers_at(np.array([position]))[0] == before + 1 - cut_pair
    assert len(starts) > 1
    html = "<p>" + "</p>\n<p>".join(escape(word) for word in words)
    (document,) = read(write(tmp_path / "a.html", html.encode()))
    assert document.text == "\n".join(words)
