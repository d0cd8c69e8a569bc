"""The text of a PDF file by page, read with `pypdf` (extra `documents`)."""

from __future__ import annotations

import io
import logging

import numpy as np

from longspan.documents.document import LineMap, UnreadableError


def pdf_text(data: bytes) -> tuple[str, LineMap]:
    """Text of a PDF file, pages separated by a form feed.

    Args:
        data: Content of the file.

    Returns:
        The text, and the map from its characters to pages, counted from 1.

    Raises:
        UnreadableError: `pypdf` is not installed, the file is damaged or encrypted, or holds no text.
    """
    pages = _read_pages(data)
    if not any(page.strip() for page in pages):
        raise UnreadableError(f"PDF of {len(pages)} pages without text (scanned pages need OCR first)")
    lengths = [len(page) + 1 for page in pages]
    starts = np.concatenate([[0], np.cumsum(lengths[:-1])]).astype(np.int64)
    return "\f".join(pages), LineMap(starts, np.arange(1, len(pages) + 1, dtype=np.int64))


def _read_pages(data: bytes) -> list[str]:
    try:
        import pypdf
    except ModuleNotFoundError as error:
        raise UnreadableError("reading PDF needs pypdf: pip install 'longspan[documents]'") from error
    # pypdf logs each oddity that it repairs; what it cannot repair is raised below.
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise UnreadableError("encrypted PDF, needs a password")
        return [page.extract_text() for page in reader.pages]
    except UnreadableError:
        raise
    except Exception as error:  # a parser fed with damaged files fails in every way there is
        raise UnreadableError(f"damaged PDF ({type(error).__name__}: {error})") from error
