"""What `embed_files` is told, and what it tells."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from longspan.documents.document import Problem
from longspan.documents.readers import ReadOptions
from longspan.documents.walk import Filters
from longspan.errors import InputError
from longspan.pipelines.text_splitter import OnLong

Others = Literal["refuse", "keep", "drop"]


class ProblemError(InputError):
    """Something cannot be read, and the run was asked to stop at that."""


@dataclass(frozen=True)
class EmbedOptions:
    """How `embed_files` works.

    Attributes:
        filters: Which files of folders are taken.
        read: How files are read.
        on_long: What to do with a document longer than the model: `"window"` makes a passage of each of its overlapping
            windows, `"truncate"` one passage of its beginning, `"error"` leaves the document out as a problem.
        overlap: Tokens that a window shares with the one before it; default an eighth of a window.
        normalize: Scale vectors to length 1; default as the model says.
        batch_tokens: Most positions of a batch; default what suits the device.
        resume: Take over what an earlier run left: unchanged files of a finished index, or of an interrupted run.
        strict: Stop at the first thing that cannot be read instead of leaving it out.
        others: What to do with files of the index that still exist but are not among the paths given.
    """

    filters: Filters = field(default_factory=Filters)
    read: ReadOptions = field(default_factory=ReadOptions)
    on_long: OnLong = "window"
    overlap: int | None = None
    normalize: bool | None = None
    batch_tokens: int | None = None
    resume: bool = True
    strict: bool = False
    others: Others = "refuse"

    def __post_init__(self) -> None:
        if self.others not in get_args(Others):
            raise InputError(f"others must be one of {', '.join(get_args(Others))}. Received: others={self.others!r}")


@dataclass
class EmbedReport:
    """What `embed_files` did.

    Attributes:
        output: The index.
        num_files: Files in it.
        num_documents: Documents in it.
        num_passages: Passages in it.
        num_tokens: Tokens of these passages.
        num_new_files: Files that were embedded by this run.
        num_new_tokens: Tokens that went through the model in this run.
        num_reused_files: Files that were taken over from earlier runs.
        num_dropped_files: Files that the index had and has no more.
        problems: What was left out.
        notes: Remarks by file.
        ignored: Files of folders that are no text by their names, counted by suffix.
        seconds: Time by stage, `total` included.
    """

    output: Path
    num_files: int = 0
    num_documents: int = 0
    num_passages: int = 0
    num_tokens: int = 0
    num_new_files: int = 0
    num_new_tokens: int = 0
    num_reused_files: int = 0
    num_dropped_files: int = 0
    problems: list[Problem] = field(default_factory=list)
    notes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    ignored: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)
