"""The text of a PDF file by page, read with `pypdf` (extra `documents`)."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Sequence

import numpy as np

from longspan.documents.document import LineMap, UnreadableError
from longspan.documents.limits import ReadLimits


def join_pages(pages: Sequence[str]) -> tuple[str, LineMap]:
    """Text of a PDF file, pages separated by a form feed, and the map from its characters to pages, from 1.

    Raises:
        UnreadableError: no page holds text.
    """
    if not any(page.strip() for page in pages):
        raise UnreadableError(f"PDF of {len(pages)} pages without text (scanned pages need OCR first)")
    lengths = [len(page) + 1 for page in pages]
    starts = np.concatenate([[0], np.cumsum(lengths[:-1])]).astype(np.int64)
    return "\f".join(pages), LineMap(starts, np.arange(1, len(pages) + 1, dtype=np.int64))


def pdf_pages(file: bytes | str, limits: ReadLimits) -> Iterator[list[str]]:
    """The texts of all pages of a PDF file, as the one thing that is yielded.

    Args:
        file: Its content, or its path.
        limits: What it may cost.

    Raises:
        UnreadableError: the file is damaged or encrypted, or passes a limit.
    """
    import pypdf

    # pypdf logs each oddity that it repairs; what it cannot repair is raised below.
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    try:
        reader = pypdf.PdfReader(io.BytesIO(file) if isinstance(file, bytes) else file)
        if reader.is_encrypted and not reader.decrypt(""):
            raise UnreadableError("encrypted PDF, needs a password")
        if len(reader.pages) > limits.pages:
            raise UnreadableError(f"has {len(reader.pages):,} pages, above the limit of {limits.pages:,} pages")
        texts: list[str] = []
        num_characters = 0
        for page in reader.pages:
            texts.append(page.extract_text())
            num_characters += len(texts[-1])
            if num_characters > limits.bytes:
                raise UnreadableError(f"larger than the limit of {limits.bytes:,} bytes")
    except (UnreadableError, MemoryError):
        raise
    except Exception as error:  # a parser fed with damaged files fails in every way there is
        raise UnreadableError(f"damaged PDF ({type(error).__name__}: {error})") from error
    yield texts
