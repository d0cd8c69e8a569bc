"""A sentence encoder whose pieces are embedded by the actors of a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from longspan.embeddings.pooling import Floats
from longspan.embeddings.sentence_encoder import SentenceEncoder
from longspan.pipelines.long.splitter import Piece
from longspan.pipelines.run.progress import Progress, Stopwatch
from longspan.pipelines.run.ray_pool import RayOptions, RayPool, one_answer


class RayEncoder(SentenceEncoder):
    """A `SentenceEncoder` for `embed_files`: this process reads, splits and writes, actors run the model.

    The pieces go to the actors as they would run here, so that the index is that of one process, bit for bit where
    the actors have the same devices. The model is also loaded here, on the CPU.

    Args:
        name_or_path: See `SentenceEncoder`; a directory must be there on every machine.
        options: Which cluster, and how many actors.
        **settings: Arguments of `SentenceEncoder`.

    Raises:
        MissingFrameworkError: ray is not installed.
        ClusterError: there is no such cluster, or vectors would depend on which of its machines made them.
    """

    def __init__(
        self, name_or_path: str | os.PathLike[str] | None = None, *, options: RayOptions, **settings: Any
    ) -> None:
        super().__init__(name_or_path, **{**settings, "device": "cpu"})
        self._pool = RayPool(partial(SentenceEncoder, self.name, **settings), options)
        try:
            self.batch_tokens, self._identity = one_answer(self._pool.ask(_describe))
        except BaseException:
            self.close()
            raise

    def identity(self) -> dict[str, Any]:
        """See `SentenceEncoder.identity`; of the actors."""
        return self._identity

    def suit_machine(self, work: int) -> None:
        """Nothing: the machines that work are others than this one."""

    def encode_blocks(
        self,
        blocks: Iterable[tuple[Sequence[Piece], Sequence[int]]],
        *,
        normalize: bool | None = None,
        batch_tokens: int | None = None,
        progress: Progress | None = None,
        watch: Stopwatch | None = None,
    ) -> Iterator[Floats]:
        """See `SentenceEncoder.encode_blocks`; blocks are read ahead."""
        counts: list[tuple[int, int]] = []

        def work() -> Iterator[tuple[Sequence[Piece]]]:
            for pieces, amounts in blocks:
                counts.append((sum(amounts), sum(piece.num_tokens for piece in pieces)))
                yield (pieces,)

        act = partial(_encode, normalize=normalize, batch_tokens=batch_tokens)
        for number, vectors in enumerate(self._pool.map(act, work(), watch)):
            yield vectors
            (progress or Progress()).advance(*counts[number])

    def close(self) -> None:
        """End the actors."""
        self._pool.close()


def _describe(encoder: SentenceEncoder) -> tuple[int, dict[str, Any]]:
    return encoder.batch_tokens, encoder.identity()


def _encode(encoder: SentenceEncoder, pieces: Sequence[Piece], **settings: Any) -> Floats:
    return encoder.encode_pieces(pieces, **settings)
