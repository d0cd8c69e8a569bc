"""The main job: embed files and folders into an index, resumably."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from longspan.pipelines.embed_options import EmbedOptions, EmbedReport
from longspan.pipelines.embed_run import EmbedRun
from longspan.pipelines.progress import Progress
from longspan.pipelines.sentence_encoder import SentenceEncoder


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
        encoder: The model.
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
