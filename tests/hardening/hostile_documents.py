"""Documents made to harm, each made when it is asked for: what they cost must stay within the limits of reading.

Run as `python -m tests.hardening.hostile_documents FOLDER`, which reads them all under a limit of memory and writes a
line of JSON for each.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import resource
import sys
import zlib
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

from longspan.documents.document import Document
from longspan.documents.limits import ReadLimits
from longspan.documents.readers import ReadOptions, read_documents
from longspan.documents.walk import Filters, find_files

Make = Callable[[], bytes]
IS_LONG = os.environ.get("LONGSPAN_HARDENING") == "long"
#: The long form has bombs beyond the default limits; the short one smaller bombs and limits.
TIMES = 80 if IS_LONG else 4
SCALE = 1 if IS_LONG else 20
LIMITS = ReadLimits(seconds=10) if IS_LONG else ReadLimits(bytes=1 << 20, record_bytes=1 << 18, cells=50_000, seconds=2)
#: Memory that reading may take in the process itself.
MEMORY = (1 << 30) if IS_LONG else (1 << 28)


def _gzip_bomb(unit: bytes, times: int) -> bytes:
    """`unit` repeated, compressed a piece at a time."""
    out = io.BytesIO()
    block = unit * (1 + (1 << 20) // len(unit))
    with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=1) as file:
        for _ in range(times):
            file.write(block)
    return out.getvalue()


def _pdf(
    stream: bytes, *, entries: str = "", objects: tuple[str, ...] = (), kids: str = "[4 0 R]", count: int = 1
) -> bytes:
    """A PDF file of one page whose content is `stream`; `entries` go to the stream's dictionary."""
    parts = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids {kids} /Count {count} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 5 0 R "
        b"/Resources << /Font << /F1 3 0 R >> >> >>",
        f"<< /Length {len(stream)} {entries} >>\nstream\n".encode() + stream + b"\nendstream",
        *(one.encode() for one in objects),
    ]
    body, offsets = b"%PDF-1.4\n", []
    for number, content in enumerate(parts, start=1):
        offsets.append(len(body))
        body += b"%d 0 obj\n" % number + content + b"\nendobj\n"
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    size = len(parts) + 1
    end = b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % (size, len(body))
    return body + b"xref\n0 %d\n0000000000 65535 f \n" % size + table + end


def _zipped(unit: bytes, times: int, layers: int = 1) -> bytes:
    data = zlib.compressobj(1)
    out = b"".join(data.compress(unit) for _ in range(times)) + data.flush()
    for _ in range(layers - 1):
        out = zlib.compress(out)
    return out


def pdfs() -> Iterator[tuple[str, Make]]:
    """PDF files: bombs, loops, depth."""
    text = b"BT /F1 12 Tf 72 720 Td (open the file) Tj ET\n"
    yield "bomb.pdf", lambda: _pdf(_zipped(text * 1000, 3000 // SCALE), entries="/Filter /FlateDecode")
    yield (
        "twice.pdf",
        lambda: _pdf(_zipped(text * 1000, 3000 // SCALE, 2), entries="/Filter [/FlateDecode /FlateDecode]"),
    )
    yield "tokens.pdf", lambda: _pdf(_zipped(b"(x) Tj " * 1000, 2000 // SCALE), entries="/Filter /FlateDecode")
    yield "deep.pdf", lambda: _pdf(b"[" * (200_000 // SCALE))
    yield "quotes.pdf", lambda: _pdf(b"(" * (200_000 // SCALE))
    yield "filters.pdf", lambda: _pdf(b"x", entries="/Filter [" + "/ASCIIHexDecode " * (20_000 // SCALE) + "]")
    yield "loop.pdf", lambda: _pdf(text, kids="[2 0 R 2 0 R 4 0 R]", count=3)
    yield "many.pdf", lambda: _pdf(text, kids="[" + "4 0 R " * (200_000 // SCALE) + "]", count=200_000 // SCALE)
    yield "count.pdf", lambda: _pdf(text, count=2_000_000_000)
    yield "form.pdf", lambda: _pdf(b"/X Do " * 10_000)
    yield "names.pdf", lambda: b"%PDF-1.4\n" + b"1 0 obj\n" * 100_000 + b"startxref\n0\n%%EOF"
    yield (
        "xref.pdf",
        lambda: b"%PDF-1.4\nxref\n0 999999999\n" + b"0000000000 00000 n \n" * 1000 + b"startxref\n9\n%%EOF",
    )
    yield "itself.pdf", lambda: b"%PDF-1.4\nxref\n0 1\n0000000000 65535 f \ntrailer << /Prev 9 >>\nstartxref\n9\n%%EOF"
    yield "nothing.pdf", lambda: b"%PDF-1.7\n"


def pages() -> Iterator[tuple[str, Make]]:
    """HTML pages on which parsers begin long searches again and again."""
    units = [
        *("<a ", "<a b=", "<a b='", '<a b="', "<!--", "<!", "<?", "</", "<![CDATA[", "<script>", "<svg>", "<p>", "&#"),
        *("&amp", "<a b=\">'", "<a/", "<title>", "<pre>\n", "\x00<", "<b><i>"),
    ]
    for number, unit in enumerate(units):
        yield f"page{number}.html", lambda unit=unit: unit.encode() * (300_000 // SCALE // len(unit))
    yield "attributes.html", lambda: b"<a " + b" ".join(b"a%d" % i for i in range(200_000 // SCALE)) + b">x"
    yield "deep.html", lambda: b"<div>" * (200_000 // SCALE) + b"x" + b"</div>" * (200_000 // SCALE)
    yield "wide.html", lambda: b"<p>x" * (500_000 // SCALE)


def texts() -> Iterator[tuple[str, Make]]:
    """Compressed texts and records, and encodings that are none."""
    for suffix, unit in product(
        ("txt", "html", "md", "py", "csv", "jsonl", "xml"), (b"a", b"\n", b" ", b"<", b'"', b",", b"\xc3\xa9")
    ):
        yield f"bomb{unit.hex()}.{suffix}.gz", lambda unit=unit: _gzip_bomb(unit, TIMES)
    yield "rows.csv.gz", lambda: _gzip_bomb(b"text\nx\n", TIMES // 10 + 1)
    yield "quoted.csv.gz", lambda: b"".join([gzip.compress(b'text\n"'), _gzip_bomb(b"x\n", TIMES)])
    yield "records.jsonl.gz", lambda: _gzip_bomb(b'{"text": "x"}\n', TIMES // 10 + 1)
    yield "nested.gz.gz", lambda: gzip.compress(_gzip_bomb(b"a", TIMES))
    yield "line.jsonl", lambda: b'{"text": "' + b"x" * (100_000_000 // SCALE) + b'"}\n{"text": "good"}\n'
    yield (
        "lists.jsonl",
        lambda: b'{"text": "x", "n": [' + b"[]," * (5_000_000 // SCALE) + b"[]]}\n" + b'{"text": "good"}\n',
    )
    yield "deep.jsonl", lambda: b'{"text": ' + b"[" * (1_000_000 // SCALE) + b'\n{"text": "good"}\n'
    yield "digits.jsonl", lambda: b'{"text": "x", "n": ' + b"9" * (1_000_000 // SCALE) + b'}\n{"text": "good"}\n'
    yield (
        "keys.jsonl",
        lambda: (
            ("{" + ", ".join(f'"{i}": 0' for i in range(500_000 // SCALE)) + "}\n").encode() + b'{"text": "good"}\n'
        ),
    )
    yield "columns.csv", lambda: b"text" + b"".join(b",c%d" % i for i in range(1_500_000 // SCALE)) + b"\nx\n"
    for encoding in (
        "undefined",
        "idna",
        "punycode",
        "unicode_escape",
        "utf-7",
        "utf-16",
        "hex",
        "rot13",
        "zlib",
        "bz2",
    ):
        yield (
            f"{encoding}.html",
            lambda encoding=encoding: f'<meta charset="{encoding}"><p>good'.encode() + b"x." * 50_000,
        )
        yield f"{encoding}.py", lambda encoding=encoding: f"# coding: {encoding}\n'good'\n".encode() + b"#x\n" * 50_000
        yield f"{encoding}.xml", lambda encoding=encoding: f"<?xml version='1.0' encoding='{encoding}'?>good".encode()
    yield (
        "laughs.xml",
        lambda: (
            b"<!DOCTYPE x ["
            + b"".join(b'<!ENTITY a%d "%s">' % (i + 1, b"&a%d;" % i * 10) for i in range(12))
            + b"]>&a12;"
        ),
    )


def parquets() -> Iterator[tuple[str, Make]]:
    """Parquet files that unfold, or lie about themselves."""
    yield "dictionary.parquet", lambda: _parquet({"text": _repeated("x" * (1_000_000 // SCALE), 20_000)})
    yield "rows.parquet", lambda: _parquet({"text": _repeated("x", 20_000_000 // SCALE)})
    yield "nulls.parquet", lambda: _parquet({"text": _repeated(None, 20_000_000 // SCALE)})
    yield "columns.parquet", lambda: _parquet({f"c{i}": ["x"] for i in range(2000)})
    whole = _parquet({"text": ["open the file", "read the log"] * 50})
    for cut in (0, 3, 4, 8, len(whole) // 2, len(whole) - 9, len(whole) - 5, len(whole) - 1):
        yield f"cut{cut}.parquet", lambda cut=cut: whole[:cut]
    for position in range(4, len(whole), max(1, len(whole) // 40)):
        flipped = bytearray(whole)
        flipped[position] ^= 0xFF
        yield f"flip{position}.parquet", lambda flipped=flipped: bytes(flipped)
    yield "footer.parquet", lambda: whole[:-8] + b"\xff\xff\xff\x7fPAR1"


def _repeated(value: str | None, times: int):
    import pyarrow as pa

    indices = pa.array([None if value is None else 0], pa.int32()).take(pa.array([0] * times, pa.int32()))
    return pa.DictionaryArray.from_arrays(indices, pa.array([value or ""]))


def _parquet(columns) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, compression="zstd", store_schema=False)
    return out.getvalue()


CASES: dict[str, Make] = dict([*pdfs(), *pages(), *texts(), *parquets()])


def processor_seconds() -> float:
    """Of this process and of those that it has ended: what else the machine does must not matter."""
    return sum(os.times()[:4])


def outcome(path: Path) -> dict[str, object]:
    """What reading a file gave, and the longest that it took to the next document or reason.

    A file of records may give millions of them, and the limit of time holds for each piece of it.
    """
    (source,) = find_files([path], Filters(tables=True)).files
    before = processor_seconds()
    longest = 0.0
    documents = characters = 0
    reasons: list[str] = []
    last = ""
    for item in read_documents(source, ReadOptions(limits=LIMITS)):
        if isinstance(item, Document):
            documents, characters, last = documents + 1, characters + len(item.text), item.text[:100]
        else:
            reasons = [*reasons[:9], item.reason]
        now = processor_seconds()
        longest, before = max(longest, now - before), now
    longest = max(longest, processor_seconds() - before)
    return {"documents": documents, "characters": characters, "reasons": reasons, "last": last, "seconds": longest}


def main() -> None:
    """Make and read every file."""
    folder = Path(sys.argv[1])
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    for name, make in CASES.items():
        (folder / name).write_bytes(make())
        allowed = pages * resource.getpagesize() + MEMORY
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (allowed, hard))
        try:
            found = outcome(folder / name)
        except BaseException as error:
            found = {"crash": f"{type(error).__name__}: {error}"[:500]}
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        found["size"] = (folder / name).stat().st_size
        (folder / name).unlink()
        print(json.dumps({"name": name, **found}), flush=True)


if __name__ == "__main__":
    main()
