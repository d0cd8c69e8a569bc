"""The main job: embed files and folders into an index, resumably."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from longspan.documents.document import Problem, UnreadableError
from longspan.documents.file_shards import FileShard, listing_digest
from longspan.documents.readers import ReadOptions, file_digest
from longspan.documents.walk import Filters, SourceFile, absolute_path, display_name, find_files
from longspan.embeddings.pooling import Floats
from longspan.embeddings.sentence_encoder import SentenceEncoder
from longspan.embeddings.stream import FileEnd, FileWork, Shard, stream_pieces
from longspan.errors import InputError
from longspan.pipelines.long.splitter import OnLong, Piece
from longspan.pipelines.run.progress import ProblemError, Progress, Stopwatch
from longspan.search.journal import FileParts
from longspan.search.passages import FileRecord, IndexFileError
from longspan.search.writer import FinalFile, IndexWriter, work_folder

Others = Literal["refuse", "keep", "drop"]


@dataclass(frozen=True)
class EmbedOptions:
    """How `embed_files` works.

    Attributes:
        filters: Which files of folders are taken.
        read: How files are read.
        on_long: What to do with a document longer than the model: `"window"` makes a passage of each of its overlapping
            windows, `"truncate"` one passage of its beginning, `"error"` leaves the document out as a problem.
        overlap: Tokens that a window shares with the one before it; default an eighth of a window.
        normalize: Scale vectors to length 1, so that no search has to.
        batch_tokens: Most positions of a batch; default what suits the device.
        resume: Take over what an earlier run left: unchanged files of a finished index, or of an interrupted run.
        strict: Stop at the first thing that cannot be read instead of leaving it out.
        others: What to do with files of the index that still exist but are not among the paths given.
        shard: Embed this share of the files only; `longspan.search.merge.merge_indexes` joins the shares.
    """

    filters: Filters = field(default_factory=Filters)
    read: ReadOptions = field(default_factory=ReadOptions)
    on_long: OnLong = "window"
    overlap: int | None = None
    normalize: bool = True
    batch_tokens: int | None = None
    resume: bool = True
    strict: bool = False
    others: Others = "refuse"
    shard: FileShard | None = None

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


#: Batches that a shard, the unit of work that a crash can lose, is made of.
_BATCHES_PER_SHARD = 8
#: bytes of a file that a token takes, about
_BYTES_OF_TOKEN = 4


class EmbedRun:
    """One call of `embed_files`; its arguments are those of the call.

    Attributes:
        report: Filled in while the run goes on.
        watch: Time by stage.
    """

    def __init__(self, output: Path, encoder: SentenceEncoder, options: EmbedOptions, progress: Progress) -> None:
        self.report = EmbedReport(output)
        self.watch = Stopwatch()
        self._encoder = encoder
        self._options = options
        self._progress = progress
        self._splitter = encoder.splitter(
            on_long=options.on_long, overlap=options.overlap, prompt=encoder.document_prompt
        )
        self._batch_tokens = encoder.batch_tokens if options.batch_tokens is None else options.batch_tokens
        self._of_shard: dict[str, str] = {}
        self._elsewhere: set[str] = set()

    def execute(self, paths: Sequence[str | os.PathLike[str]]) -> None:
        """Do the work."""
        sources = self._find(paths)
        writer = IndexWriter(
            self.report.output,
            settings=self._settings(),
            dimension=self._encoder.dimension,
            shard_tokens=self._batch_tokens * _BATCHES_PER_SHARD,
            identity={name: value for name, value in self._encoder.identity().items() if name != "model"},
            resume=self._options.resume,
        )
        with writer:
            others = self._others(writer, sources)
            work = self._plan(writer, sources)
            size = sum(file.source.size for file in work)
            if self._options.batch_tokens is None:
                self._encoder.suit_machine(size // _BYTES_OF_TOKEN)
                self._batch_tokens = self._encoder.batch_tokens
            self._progress.start(len(work), size)
            self._embed(writer, self._shards(work, writer.shard_tokens))
            with self.watch.time("write"):
                self._finish(writer, sources, others)

    def _settings(self) -> dict[str, Any]:
        encoder = self._encoder
        on_long = self._options.on_long
        return {
            **({} if on_long == "window" else {"on_long": on_long}),  # an index without a word on it has windows
            "model": encoder.name,
            "weights": encoder.fingerprint,
            "dtype": encoder.dtype,
            "max_length": encoder.max_length,
            "overlap": self._splitter.overlap,
            "prompt": self._splitter.prompt,
            "normalized": self._options.normalize,
            "text_field": self._options.read.text_field,
            **self._of_shard,
        }

    # Which files

    def _find(self, paths: Sequence[str | os.PathLike[str]]) -> dict[str, SourceFile]:
        """Files to be in the index, by absolute path; those of other shards are remembered as such."""
        output = self.report.output
        own = {absolute_path(output), absolute_path(work_folder(output))}
        filters = replace(self._options.filters, skip=self._options.filters.skip | own)
        with self.watch.time("find"):
            found = find_files(paths, filters)
        self.report.ignored = found.ignored
        for problem in found.problems:
            self._report(problem)
        sources = {display_name(absolute_path(source.path)): source for source in found.files}
        if (shard := self._options.shard) is None:
            return sources
        self._of_shard = {"shard": str(shard), "listing": listing_digest(found.files)}
        taken = set(shard.take(found.files))
        self._elsewhere = {key for key, source in sources.items() if source not in taken}
        return {key: source for key, source in sources.items() if key not in self._elsewhere}

    def _others(self, writer: IndexWriter, sources: dict[str, SourceFile]) -> list[FinalFile]:
        """Files of the index that this run did not find: gone ones are dropped, others as the options say."""
        missing = {key: parts.record for key, parts in writer.known.items() if key not in sources and parts.record}
        present = [key for key in missing if key not in self._elsewhere and os.path.lexists(key)]
        if present and self._options.others == "refuse":
            raise IndexFileError(
                f"The given paths must cover the files of {self.report.output} that still exist. Received: paths that "
                f"leave out {len(present)} of them, such as {present[0]}. Keep them (--others keep) or drop them "
                "(--others drop)"
            )
        kept = present if self._options.others == "keep" else []
        self.report.num_dropped_files = len(missing) - len(kept)
        return [FinalFile(record, writer.known[key].slices) for key in sorted(kept) if (record := missing[key])]

    def _plan(self, writer: IndexWriter, sources: dict[str, SourceFile]) -> list[FileWork]:
        """Files that must be embedded, with the place to begin at.

        A file that cannot be read is reported; what the index already has of it stays.
        """
        work = []
        for key, source in list(sources.items()):
            known = writer.known.get(key, FileParts())
            try:
                with self.watch.time("find"):
                    digest = file_digest(source)
            except UnreadableError as error:
                self._report(Problem(source.name, error.reason))
                if known.record is None:
                    del sources[key]
                continue
            if known.record is not None and _can_be_reused(known.record, digest):
                self.report.num_reused_files += 1
                for problem in known.record.problems:
                    self._report(replace(problem, path=source.name))
            else:
                work.append(_begin(FileWork(source, key, digest), known))
        return work

    # The work

    def _shards(self, work: list[FileWork], shard_tokens: int) -> Iterator[Shard]:
        """Cut the stream of pieces where `shard_tokens` tokens are full.

        Where a shard ends depends on the pieces since its beginning only, so a run that resumes after any shard cuts
        the rest as one that was not interrupted, and runs the same batches.
        """
        shard = Shard()
        for item in stream_pieces(work, self._splitter, self._options.read, self.watch):
            if isinstance(item, Problem):
                self._report(item)
            elif isinstance(item, FileEnd):
                shard.ended.append(item.file)
            else:
                shard.add(item)
                if shard.num_tokens >= shard_tokens:
                    yield shard
                    shard = Shard()
        if shard.pieces or shard.ended:
            yield shard

    def _embed(self, writer: IndexWriter, shards: Iterator[Shard]) -> None:
        waiting: deque[Shard] = deque()

        def blocks() -> Iterator[tuple[list[Piece], list[int]]]:
            for shard in shards:
                waiting.append(shard)
                yield [item.piece for item in shard.pieces], shard.amounts

        for vectors in self._encoder.encode_blocks(
            blocks(),
            normalize=self._options.normalize,
            batch_tokens=self._batch_tokens,
            progress=self._progress,
            watch=self.watch,
        ):
            self._keep(writer, waiting.popleft(), vectors)

    def _keep(self, writer: IndexWriter, shard: Shard, vectors: Floats) -> None:
        with self.watch.time("write"):
            writer.append(shard.step(), shard.passages(vectors) if shard.pieces else None)
        self.report.num_new_files += len(shard.ended)
        self.report.num_new_tokens += shard.num_tokens
        for file in shard.ended:
            self._progress.advance(file.source.size - file.progress, 0)
        self._progress.finish_documents(len(shard.ended))

    def _report(self, problem: Problem) -> None:
        if self._options.strict:
            raise ProblemError(f"With --strict everything must be readable. Received: {problem}")
        self.report.problems.append(problem)
        self._progress.report(problem)

    # The end

    def _finish(self, writer: IndexWriter, sources: dict[str, SourceFile], others: list[FinalFile]) -> None:
        known = writer.files()
        files = []
        for key, source in sources.items():
            record = known[key].record
            if record is not None:
                files.append(FinalFile(_renamed(record, source.name), known[key].slices))
        files += others
        records = writer.finish(files).files
        report = self.report
        report.num_files = len(records)
        report.num_documents = sum(record.documents for record in records)
        report.num_passages = sum(record.rows for record in records)
        report.num_tokens = sum(record.tokens for record in records)
        report.notes = {record.path: record.notes for record in records if record.notes}


def _can_be_reused(record: FileRecord, digest: str) -> bool:
    """True unless the file changed, or could not be read at all, which may be otherwise today."""
    return record.digest == digest and not (record.problems and not record.rows)


def _begin(file: FileWork, known: FileParts) -> FileWork:
    """Let `file` begin where an interrupted run stopped, if it is still the same file."""
    place = known.unfinished
    if place is None or place.digest != file.digest:
        return file
    return replace(file, first_document=place.document, first_chunk=place.chunk, rows=place.rows, tokens=place.tokens)


def _renamed(record: FileRecord, name: str) -> FileRecord:
    return replace(record, path=name, problems=tuple(replace(problem, path=name) for problem in record.problems))


def embed_files(
    paths: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    encoder: SentenceEncoder,
    options: EmbedOptions | None = None,
    progress: Progress | None = None,
) -> EmbedReport:
    """Embed the text of files and folders into an index that `search_index` reads.

    Texts are cut into overlapping windows of the model's length; the index keeps each window's vector, text, characters
    and lines. What is done is safe at once: a run that was killed goes on where it was, with the same result as
    one that was not. On a finished index only files whose content changed are embedded again.

    Args:
        paths: Files and folders.
        output: A `.parquet` or `.npz` file, or a folder.
        encoder: The model; `longspan.embeddings.ray_encoder.RayEncoder` runs it on a Ray cluster.
        options: How to work.
        progress: Told how far the run is.

    Returns:
        What was done, and what had to be left out.

    Raises:
        InputError: an argument breaks a rule, or the output is in use by another run.
        IndexFileError: the output exists and is no index, or was made with other settings.
        ProblemError: something cannot be read and `options.strict` is set.
    """
    run = EmbedRun(Path(output), encoder, options or EmbedOptions(), progress or Progress())
    with run.watch.time("total"):
        run.execute(paths)
    run.report.seconds = run.watch.seconds
    return run.report
