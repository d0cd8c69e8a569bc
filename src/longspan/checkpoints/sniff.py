"""What a file really is, by its first bytes: for messages about files that carry the wrong name."""

from __future__ import annotations

from pathlib import Path

_LFS = b"version https://git-lfs"

#: what `describe` says of a file that it cannot place
UNKNOWN = "no format that longspan knows"

_SIGNATURES = (
    (_LFS, "a Git LFS pointer, not the file itself (run `git lfs pull`)"),
    (b"PK\x03\x04", "a zip archive, as torch.save writes (pytorch_model.bin)"),
    (b"\x80\x02", "a Python pickle, as old versions of torch.save write (pytorch_model.bin)"),
    (b"\x80\x03", "a Python pickle"),
    (b"\x80\x04", "a Python pickle"),
    (b"\x80\x05", "a Python pickle"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (tf_model.h5)"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"GGUF", "a GGUF file"),
)


def describe(path: Path) -> str:
    """Say what a file looks like, as the end of a sentence.

    Args:
        path: An existing file.

    Returns:
        E.g. `"an HTML page"`, `"empty"`, or `"no format that longspan knows"`.
    """
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        return "empty"
    for signature, description in _SIGNATURES:
        if head.startswith(signature):
            return description
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "an HTML page, perhaps the error page of a failed download"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000:
        return "a safetensors file (model.safetensors)"
    if head.lstrip().startswith(b"{"):
        return "a JSON file"
    return UNKNOWN
