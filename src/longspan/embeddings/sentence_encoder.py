"""`SentenceEncoder`: texts of any length to vectors."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from longspan.checkpoints.hub import Source
from longspan.documents.document import replace_surrogates
from longspan.embeddings.modules import (
    DEFAULT_MODEL,
    default_model_folder,
    digest_of,
    load_tokenizer,
    read_sentence_modules,
)
from longspan.embeddings.pooling import MAX, Floats, order_modes, pooled_tokens, pooling_weights
from longspan.embeddings.pooling import normalize as to_unit_length
from longspan.embeddings.synonyms import SentenceTransformerNames, as_tensor, check_output, quantize
from longspan.errors import InputError
from longspan.pipelines.backends import load_encoder
from longspan.pipelines.long.splitter import Ids, OnLong, Piece, TextSplitter
from longspan.pipelines.run.attributes import FixedAttributes
from longspan.pipelines.run.batching import Batch, Plan, pad, plan_for, run_plan
from longspan.pipelines.run.identity import identity_of
from longspan.pipelines.run.progress import Progress, Stopwatch, progress_bar

#: Texts are taken from an iterable in blocks of at most so many texts and characters.
_BLOCK_TEXTS = 4096
_BLOCK_CHARACTERS = 1 << 22
_NO_LIMIT = 1 << 30
_QUERY_PROMPTS = ("query",)
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")


class SentenceEncoder(FixedAttributes, SentenceTransformerNames):
    """Turns texts into vectors whose cosine says how alike they are.

    Reads sentence-transformers folders (pooling, layers after it, normalisation, lengths, prompts) and plain models,
    for which it takes the mean over tokens. A text longer than the model is cut into overlapping windows of tokens; its
    vector is the mean of their vectors weighted by their tokens, taken before the final normalisation. Nothing is cut
    off silently.

    Args:
        name_or_path: Directory or hub repository; default the packaged all-MiniLM-L6-v2 (extra `demo`).
        framework: Framework that runs the model: `"torch"`, `"flax"` or `"keras"`.
        device: Device in the framework's words, e.g. `"cuda"`; default the first accelerator, or the CPU.
        dtype: Type of the weights, e.g. `"bfloat16"`; default float32. Vectors are float32 always. `"int8"`
            (PyTorch on a CPU, BERT and RoBERTa) multiplies in 8 bits; `docs/embed.md` says what that costs and gives.
        precision: Another name of `dtype`.
        max_length: Most tokens of a window, special tokens included; default what the folder says. It may be longer
            than the model: a BERT or RoBERTa is then read as a Longformer (see `longspan.to_long`).
        batch_tokens: Most positions of a batch, padding included; default what suits the device.
        attn_implementation: Implementation of attention; default: chosen by the model.
        revision: Branch, tag or commit of a hub repository.
        cache_dir: Hub cache to use.
        local_files_only: Never reach for the network.
        token: Access token of the hub.

    Attributes:
        name: The model's name, or the absolute path of its directory.
        framework: The framework.
        dtype: Type of the weights.
        max_length: Most tokens of a window.
        batch_tokens: Most positions of a batch, padding included, unless a call says otherwise.
        normalizes: Whether vectors have length 1 unless the caller says otherwise.
        prompts: Texts that the model wants before others, by name.
        default_prompt_name: The prompt used when none is asked for.
        tokenizer: The tokenizer.
        similarity_fn_name: How `similarity` compares: `"cosine"`, `"dot"`, `"euclidean"` or `"manhattan"`.

    Also known are the names of sentence-transformers: `max_seq_length`, `similarity`, `tokenize`, `save_pretrained`,
    `get_sentence_embedding_dimension`, and the arguments of its `encode`. Other attributes cannot be set.

    Raises:
        CheckpointNotFoundError: there is no such model, or no model was named and the packaged one is not installed.
        CheckpointError: the folder is damaged or uses what longspan does not know.
        InputError: an argument breaks a rule.

    Example:
        >>> from longspan import SentenceEncoder
        >>> encoder = SentenceEncoder()
        >>> vectors = encoder.encode(["How do I open a file?", "Reading files", "Cooking rice"])
        >>> vectors.shape
        (3, 384)
        >>> bool(vectors[0] @ vectors[1] > vectors[0] @ vectors[2])
        True
    """

    name: str
    dtype: str
    batch_tokens: int
    normalizes: bool

    def __init__(
        self,
        name_or_path: str | os.PathLike[str] | None = None,
        *,
        framework: str = "torch",
        device: str | None = None,
        dtype: str | None = None,
        precision: str | None = None,
        max_length: int | None = None,
        batch_tokens: int | None = None,
        attn_implementation: str | None = None,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
    ) -> None:
        self.name, location = locate(name_or_path)
        source = Source(
            location, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only, token=token
        )
        self._modules = read_sentence_modules(source)
        if not self._modules.is_sentence_model:
            warnings.warn(
                f"{self.name} is no sentence-transformers model: its vectors are means over tokens. A model trained "
                "only to fill in masked words gives poor embeddings; prefer one trained to embed texts.",
                stacklevel=2,
            )
        if precision is not None and dtype not in (None, precision):
            raise InputError(f"precision and dtype must agree. Received: precision={precision!r}, dtype={dtype!r}")
        dtype = dtype or precision
        self.framework = framework
        self.dtype = dtype or "float32"
        self.tokenizer, self._fast_tokenizer = load_tokenizer(self._modules)
        self._backend = load_encoder(
            framework,
            self._modules.transformer,
            device=device,
            dtype=dtype,
            attn_implementation=attn_implementation,
            max_length=max_length,
        )
        self.max_length = self._resolve_max_length(max_length)
        self.normalizes = self._modules.normalizes
        self.prompts = dict(self._modules.prompts)
        self.default_prompt_name = self._modules.default_prompt_name
        self.similarity_fn_name = self._modules.similarity
        self._follows_machine = batch_tokens is None
        self.batch_tokens = self._backend.batch_tokens if batch_tokens is None else batch_tokens

    @cached_property
    def dimension(self) -> int:
        """Length D of a vector."""
        return int(self._run_layers(np.zeros((1, self._pooled_size), np.float32)).shape[1])

    def get_sentence_embedding_dimension(self) -> int:
        """Length of a vector, `dimension`."""
        return self.dimension

    get_embedding_dimension = get_sentence_embedding_dimension

    @cached_property
    def fingerprint(self) -> str:
        """Digest of everything in the checkpoint that vectors depend on: weights, settings, tokenizer, pooling."""
        return digest_of(self._modules, self._fast_tokenizer)

    def identity(self) -> dict[str, Any]:
        """Everything that vectors depend on besides texts and arguments of calls."""
        return identity_of(self._backend, self.fingerprint)

    def encode(
        self,
        texts: str | Iterable[str],
        *,
        normalize: bool | None = None,
        batch_tokens: int | None = None,
        show_progress: bool = False,
        on_long: OnLong = "window",
        overlap: int | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        truncate_dim: int | None = None,
        precision: str = "float32",
        output_value: str = "sentence_embedding",
        convert_to_tensor: bool = False,
        convert_to_numpy: bool = True,
        normalize_embeddings: bool | None = None,
        show_progress_bar: bool | None = None,
    ) -> Any:
        """Turn texts into vectors.

        Args:
            texts: Texts of any length, or one text.
            normalize: Scale vectors to length 1; default as the model says.
            batch_tokens: Most positions of a batch, padding included.
            show_progress: Draw a bar with documents and tokens on the standard error stream.
            on_long: What to do with a text longer than `max_length`: `"window"` reads all of it in overlapping windows,
                `"truncate"` reads its beginning (as sentence-transformers does), `"error"` raises.
            overlap: Tokens that a window shares with the one before it; default an eighth of a window.
            prompt_name: Which of the model's prompts to put before each text; default `default_prompt_name`.
            prompt: Text to put before each text, instead of a named prompt.
            batch_size: Most texts of a batch; default what `batch_tokens` allows.
            truncate_dim: Keep only so many dimensions of a vector; with `normalize=True` they have length 1 again.
            precision: `"float32"`, `"int8"`, `"uint8"`, `"binary"` or `"ubinary"`; see `synonyms.quantize`.
            output_value: `"token_embeddings"` gives the states of each text's tokens instead, special ones included,
                (S, H) each; a text must then fit one window.
            convert_to_tensor: Give a tensor of the framework.
            convert_to_numpy: False, without a tensor wanted, gives a list of tensors.
            normalize_embeddings: The name that sentence-transformers has for `normalize`.
            show_progress_bar: The name that sentence-transformers has for `show_progress`.

        Returns:
            (N, D) float32 in the order of `texts`; (D,) for one text.

        Raises:
            InputError: a text is no string, is too long with `on_long="error"`, or an argument breaks a rule.
        """
        check_output(output_value, precision, truncate_dim)
        normalize = normalize_embeddings if normalize is None else normalize
        single = isinstance(texts, str)
        items: Iterable[str] = [texts] if isinstance(texts, str) else texts
        splitter = self.splitter(on_long=on_long, overlap=overlap, prompt=self._resolve_prompt(prompt_name, prompt))
        with progress_bar(show_progress or bool(show_progress_bar)) as progress:
            progress.start(*_size(items))
            if output_value == "token_embeddings":
                states = list(self._token_states(items, splitter, batch_tokens, batch_size))
                states = [as_tensor(state, self.framework) for state in states] if convert_to_tensor else states
                return states[0] if single else states
            vectors = list(self._encode_blocks(items, splitter, normalize, batch_tokens, progress, batch_size))
        found = np.concatenate(vectors) if vectors else np.zeros((0, self.dimension), np.float32)
        if truncate_dim is not None:
            found = to_unit_length(found[:, :truncate_dim]) if normalize else found[:, :truncate_dim]
        found = quantize(found, precision)
        result: Any = found
        if convert_to_tensor or not convert_to_numpy:
            result = as_tensor(np.ascontiguousarray(found), self.framework)
            result = result if convert_to_tensor else list(result)
        return result[0] if single else result

    def encode_iter(
        self,
        texts: Iterable[str],
        *,
        normalize: bool | None = None,
        batch_tokens: int | None = None,
        on_long: OnLong = "window",
        overlap: int | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Floats]:
        """Turn texts into vectors one after the other, reading ahead a bounded number of texts.

        Args:
            texts: Texts of any length, e.g. a generator; arguments are as in `encode`.
            normalize: See `encode`.
            batch_tokens: See `encode`.
            on_long: See `encode`.
            overlap: See `encode`.
            prompt_name: See `encode`.
            prompt: See `encode`.
            progress: Told after each batch.

        Yields:
            (D,) float32 for each text, in order.
        """
        splitter = self.splitter(on_long=on_long, overlap=overlap, prompt=self._resolve_prompt(prompt_name, prompt))
        for vectors in self._encode_blocks(texts, splitter, normalize, batch_tokens, progress or Progress()):
            yield from vectors

    def encode_query(self, texts: str | Iterable[str], **kwargs: Any) -> Any:
        """Like `encode`, with the model's prompt for queries, if it has one."""
        return self.encode(texts, **{"prompt": self.query_prompt, **kwargs})

    def encode_document(self, texts: str | Iterable[str], **kwargs: Any) -> Any:
        """Like `encode`, with the model's prompt for documents, if it has one."""
        return self.encode(texts, **{"prompt": self.document_prompt, **kwargs})

    @property
    def query_prompt(self) -> str:
        """Text that the model wants before queries."""
        return self._first_prompt(_QUERY_PROMPTS)

    @property
    def document_prompt(self) -> str:
        """Text that the model wants before documents."""
        return self._first_prompt(_DOCUMENT_PROMPTS)

    def splitter(self, *, on_long: OnLong = "window", overlap: int | None = None, prompt: str = "") -> TextSplitter:
        """What cuts texts into pieces for this model; arguments are as in `encode`."""
        return TextSplitter(
            self._fast_tokenizer, max_length=self.max_length, on_long=on_long, overlap=overlap, prompt=prompt
        )

    def encode_pieces(
        self,
        pieces: Sequence[Piece],
        *,
        normalize: bool | None = None,
        batch_tokens: int | None = None,
        progress: Progress | None = None,
        amounts: Sequence[int] | None = None,
    ) -> Floats:
        """Vectors (N, D) of pieces, one each.

        Args:
            pieces: What `splitter().split` gave.
            normalize: Scale vectors to length 1; default as the model says.
            batch_tokens: Most positions of a batch, padding included.
            progress: Told after each batch.
            amounts: What each piece adds to the progress; default 0.
        """
        vectors = self._piece_vectors(pieces, batch_tokens, progress or Progress(), amounts or [0] * len(pieces))
        return self._finish(vectors, normalize)

    def encode_blocks(
        self,
        blocks: Iterable[tuple[Sequence[Piece], Sequence[int]]],
        *,
        normalize: bool | None = None,
        batch_tokens: int | None = None,
        progress: Progress | None = None,
        watch: Stopwatch | None = None,
    ) -> Iterator[Floats]:
        """Vectors (N, D) of blocks of pieces, one block after the other.

        Args:
            blocks: Pieces, and what each adds to the progress.
            normalize: See `encode_pieces`.
            batch_tokens: See `encode_pieces`.
            progress: See `encode_pieces`.
            watch: Gets the stage `model`.
        """
        watch = watch or Stopwatch()
        for pieces, amounts in blocks:
            with watch.time("model"):
                vectors = self.encode_pieces(
                    pieces, normalize=normalize, batch_tokens=batch_tokens, progress=progress, amounts=amounts
                )
            yield vectors

    @property
    def _pooled_size(self) -> int:
        return self._backend.hidden_size * len(self._modules.pooling)

    def _encode_blocks(
        self,
        texts: Iterable[str],
        splitter: TextSplitter,
        normalize: bool | None,
        batch_tokens: int | None,
        progress: Progress,
        batch_size: int | None = None,
    ) -> Iterator[Floats]:
        for block in _blocks(texts):
            of_texts = splitter.split(block)
            pieces = [piece for of_text in of_texts for piece in of_text]
            amounts = [
                len(text) // len(of_text) for text, of_text in zip(block, of_texts, strict=True) for _ in of_text
            ]
            vectors = self._piece_vectors(pieces, batch_tokens, progress, amounts, batch_size)
            yield self._finish(_mean_of_windows(vectors, of_texts), normalize)
            progress.finish_documents(len(block))

    def _piece_vectors(
        self,
        pieces: Sequence[Piece],
        batch_tokens: int | None,
        progress: Progress,
        amounts: Sequence[int],
        batch_size: int | None = None,
    ) -> Floats:
        """Vectors (N, D) before the final normalisation; zero for a piece without any token."""
        vectors = np.zeros((len(pieces), self.dimension), np.float32)
        lengths = [len(piece.ids) for piece in pieces]
        plan = self._plan(lengths, batch_tokens, batch_size)

        def run(batch: Batch) -> Floats:
            chosen = [pieces[index] for index in batch.indices if lengths[index]]  # longest first
            return self._run_batch(chosen, batch.shape) if chosen else vectors[:0]

        for batch, found in run_plan(self._backend, plan, run):
            vectors[batch.indices[: len(found)]] = found
            amount = sum(amounts[index] for index in batch.indices)
            progress.advance(amount, sum(pieces[index].num_tokens for index in batch.indices[: len(found)]))
        return vectors

    def _plan(self, lengths: list[int], batch_tokens: int | None, batch_size: int | None) -> Plan:
        if batch_tokens is None:
            self.suit_machine(sum(lengths))
        budget = self.batch_tokens if batch_tokens is None else batch_tokens
        return plan_for(self._backend, lengths, budget, max_rows=batch_size)

    def suit_machine(self, work: int) -> None:
        """Find out which batches suit this machine, if so much work is worth it and `batch_tokens` was left open.

        Args:
            work: Tokens that are about to be read.
        """
        is_open = self._follows_machine and self.batch_tokens == self._backend.batch_tokens
        if is_open and self._backend.measure_batches(work):
            self.batch_tokens = self._backend.batch_tokens

    def _token_states(
        self, texts: Iterable[str], splitter: TextSplitter, batch_tokens: int | None, batch_size: int | None
    ) -> Iterator[Floats]:
        """States (S, H) of each text's tokens: weighted sums over tokens, each of one token."""
        for block in _blocks(texts):
            of_texts = splitter.split(block)
            if any(len(of_text) > 1 for of_text in of_texts):
                raise InputError(
                    f"With output_value='token_embeddings' a text must fit max_length={self.max_length} tokens (or be "
                    "cut by on_long='truncate'). Received: a longer one"
                )
            pieces = [of_text[0] for of_text in of_texts]
            states: list[Floats] = [np.empty((0, self._backend.hidden_size), np.float32)] * len(pieces)
            lengths = [len(piece.ids) for piece in pieces]
            plan = self._plan(lengths, batch_tokens, batch_size)
            for batch, found in run_plan(self._backend, plan, partial(self._batch_states, pieces)):
                for place, index in enumerate(batch.indices):
                    states[index] = found[place, : lengths[index]].copy()
            yield from states

    def _batch_states(self, pieces: Sequence[Piece], batch: Batch) -> Floats:
        """States (B, S, H) of the pieces of a batch."""
        ids, (rows, size) = [pieces[index].ids for index in batch.indices], batch.shape
        counts = np.zeros(rows, np.int64)
        counts[: len(ids)] = [len(row) for row in ids]
        return self._backend.encode_batch(
            pad(ids, batch.shape, self.tokenizer.pad_token_id or 0),
            np.arange(size) < counts[:, None],
            np.broadcast_to(np.eye(size, dtype=np.float32), (rows, size, size)).copy(),
            None,
        )

    def _run_batch(self, pieces: Sequence[Piece], shape: tuple[int, int]) -> Floats:
        ids, leading = [piece.ids for piece in pieces], [piece.num_leading for piece in pieces]
        pooled = self._backend.encode_batch(*self._batch_arrays(ids, leading, shape))
        return self._run_layers(order_modes(self._modules.pooling, pooled[: len(pieces)]))

    def _batch_arrays(
        self, ids: Sequence[Ids], num_leading: Sequence[int], shape: tuple[int, int]
    ) -> tuple[Any, Any, Floats, Any]:
        """Arguments of `Encoder.encode_batch` for rows of token ids, of which `num_leading` stand before the text."""
        modes = self._modules.pooling
        lengths, skipped = np.zeros((2, shape[0]), np.int64)
        lengths[: len(ids)] = [len(row) for row in ids]
        if not self._modules.pools_prompt:
            skipped[: len(ids)] = num_leading
        mask = pooled_tokens(lengths, shape[1], skipped)
        return (
            pad(ids, shape, self.tokenizer.pad_token_id or 0),
            np.arange(shape[1]) < lengths[:, None],
            pooling_weights(modes, mask),
            mask if MAX in modes else None,
        )

    def _run_layers(self, vectors: Floats) -> Floats:
        for layer in self._modules.layers:
            vectors = layer(vectors)
        return vectors

    def _finish(self, vectors: Floats, normalize: bool | None) -> Floats:
        return to_unit_length(vectors) if (self.normalizes if normalize is None else normalize) else vectors

    def _resolve_max_length(self, asked: int | None) -> int:
        limit = self._backend.max_positions or _NO_LIMIT
        if asked is None:
            known = [self.tokenizer.model_max_length, self._modules.max_length]
            return int(min(limit, *(length for length in known if length is not None)))
        if not 1 <= asked <= limit:
            raise InputError(f"max_length must lie in [1, {limit}] for {self.name}. Received: max_length={asked}")
        return asked

    def _resolve_prompt(self, prompt_name: str | None, prompt: str | None) -> str:
        if prompt is not None:
            return prompt
        name = self.default_prompt_name if prompt_name is None else prompt_name
        if name is None:
            return ""
        if name not in self.prompts:
            raise InputError(
                f"prompt_name must be one of the model's prompts, {list(self.prompts)}. Received: prompt_name={name!r}"
            )
        return self.prompts[name]

    def _first_prompt(self, names: Sequence[str]) -> str:
        known = [name for name in names if name in self.prompts]
        return self.prompts[known[0]] if known else self._resolve_prompt(None, None)


def locate(name_or_path: str | os.PathLike[str] | None) -> tuple[str, str]:
    """Name to remember, and where to look."""
    if name_or_path is None or name_or_path == DEFAULT_MODEL:
        return DEFAULT_MODEL, str(default_model_folder())
    path = Path(name_or_path)
    name = str(path.absolute()) if path.is_dir() else str(name_or_path)
    return name, name


def _mean_of_windows(vectors: Floats, of_texts: Sequence[Sequence[Piece]]) -> Floats:
    """One vector a text (N, D): the mean of its pieces' vectors, weighted by their tokens."""
    if all(len(of_text) == 1 for of_text in of_texts):
        return vectors
    weights = np.array([max(1, piece.num_tokens) for of_text in of_texts for piece in of_text], np.float32)
    starts = np.cumsum([0, *(len(of_text) for of_text in of_texts[:-1])])
    sums = np.add.reduceat(vectors * weights[:, None], starts, axis=0)
    return np.asarray(sums / np.add.reduceat(weights, starts)[:, None], np.float32)


def _blocks(texts: Iterable[str]) -> Iterator[list[str]]:
    """Consecutive texts, checked, in lists of bounded size."""
    block: list[str] = []
    num_characters = 0
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"Each text must be a string. Received: {type(text).__name__} at position {index}")
        block.append(replace_surrogates(text))
        num_characters += len(text)
        if len(block) >= _BLOCK_TEXTS or num_characters >= _BLOCK_CHARACTERS:
            yield block
            block, num_characters = [], 0
    if block:
        yield block


def _size(texts: Iterable[str]) -> tuple[int | None, int | None]:
    """Number of texts and of characters, if that can be known without using the texts up."""
    if not isinstance(texts, Sequence):
        return None, None
    return len(texts), sum(len(text) for text in texts if isinstance(text, str))
