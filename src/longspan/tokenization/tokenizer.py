"""`PreTrainedTokenizer`: from text to the ids a model reads, and back."""

from __future__ import annotations

import copy
import os
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, cast

from tokenizers import AddedToken, Tokenizer

from longspan.errors import ConfigError, InputError
from longspan.tokenization import chat
from longspan.tokenization.assembly import set_add_prefix_space
from longspan.tokenization.backend import Backend
from longspan.tokenization.columns import NO_FILL, Fill, Wanted, pad_lists, to_tensors
from longspan.tokenization.encoding import BatchEncoding
from longspan.tokenization.features import read_features
from longspan.tokenization.files import read_tokenizer_file
from longspan.tokenization.inputs import TextInput, read_batch
from longspan.tokenization.loading import load_tokenizer
from longspan.tokenization.request import Request
from longspan.tokenization.rows import Rows, be_silent
from longspan.tokenization.saving import save_tokenizer
from longspan.tokenization.settings import (
    VERY_LARGE_INTEGER,
    Padding,
    Warn,
    check_max_length,
    check_multiple,
    check_side,
    resolve_padding,
    resolve_truncation,
)
from longspan.tokenization.special_tokens import Token, as_added, text_of
from longspan.tokenization.tensors import tensor_converter, to_lists
from longspan.tokenization.training import train_like
from longspan.tokenization.vocabulary import check_ids


class PreTrainedTokenizer(Rows):
    """A tokenizer: normalizer, pre-tokenizer, vocabulary and special tokens, over the `tokenizers` library.

    Threads may share one: calls read its settings and never change it.

    Args:
        tokenizer_object: A `tokenizers.Tokenizer` to use (copied).
        tokenizer_file: A `tokenizer.json` to read.
        **settings: What `tokenizer_config.json` holds: special tokens (`pad_token="[PAD]"`), `model_max_length`,
            `padding_side`, `truncation_side`, `model_input_names`, `clean_up_tokenization_spaces`, and settings of
            the class. Keys that nothing reads are kept and saved.

    Attributes:
        name_or_path: Where the tokenizer was loaded from.
        model_max_length: Most tokens, special ones included, that the model reads; 1e30 if unknown.
        padding_side: `"right"` or `"left"`.
        truncation_side: Side that loses tokens, `"right"` or `"left"`.
        model_input_names: Columns that a call returns when it is not told.
        clean_up_tokenization_spaces: Default of `decode`.
        split_special_tokens: Read special tokens inside texts as plain text.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> words = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "long": 2, "text": 3}, unk_token="[UNK]"))
        >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = PreTrainedTokenizer(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
        >>> tokenizer(["long long text", "text"], padding=True).input_ids
        [[2, 2, 3], [3, 0, 0]]
        >>> tokenizer.decode([2, 3])
        'long text'
    """

    #: Settings of the class, used where neither files nor caller name them.
    default_settings: ClassVar[Mapping[str, Any]] = {}
    #: Settings by which only the reference's Python tokenizers split text, with the value at which they do nothing.
    absent_settings: ClassVar[Mapping[str, Any]] = {"sp_model_kwargs": None}
    default_model_input_names: ClassVar[tuple[str, ...]] = ("input_ids", "token_type_ids", "attention_mask")
    #: Files of the vocabulary, by the argument that names them; `tokenizer.json` serves every class.
    vocabulary_files: ClassVar[Mapping[str, str]] = {}
    #: Name in `tokenizer_config.json`, which `transformers` reads too.
    saved_class_name: ClassVar[str] = "PreTrainedTokenizerFast"

    def __init__(
        self,
        *,
        tokenizer_object: Tokenizer | None = None,
        tokenizer_file: str | os.PathLike[str] | None = None,
        _loaded: Tokenizer | None = None,
        **settings: Any,
    ) -> None:
        settings = {**self.default_settings, **settings}
        added = settings.pop("added_tokens_decoder", {})
        if tokenizer_object is not None:
            tokenizer = copy.deepcopy(tokenizer_object)
        elif tokenizer_file is not None:
            tokenizer = read_tokenizer_file(Path(tokenizer_file))
        else:
            tokenizer = self._build(settings) if _loaded is None else _loaded
        for key, value in _settings_inside(tokenizer).items():
            settings.setdefault(key, value)
        self._read_settings(settings)
        self._warned: set[str] = set()
        self._configure(tokenizer, settings)
        self._backend = Backend(tokenizer)
        self._register_tokens(added)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(name_or_path={self.name_or_path!r}, vocab_size={self.vocab_size}, "
            f"length={len(self)}, model_max_length={self.model_max_length}, padding_side={self.padding_side!r}, "
            f"truncation_side={self.truncation_side!r}, special_tokens={self.special_tokens_map})"
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Load a tokenizer of this class from a local directory or a hub repository.

        Args:
            pretrained_model_name_or_path: Directory, or repository id such as `"allenai/longformer-base-4096"`.
            **kwargs: `revision`, `subfolder`, `cache_dir`, `local_files_only`, `force_download`, `token`, and
                settings that override the files' (`model_max_length=4096`, `padding_side="left"`).

        Returns:
            The tokenizer.

        Raises:
            CheckpointNotFoundError: there is no such checkpoint, or it has no tokenizer files.
            CheckpointError: a file is damaged.
        """
        return cast(Self, load_tokenizer(pretrained_model_name_or_path, choose=lambda name, file: cls, **kwargs))

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> tuple[str, ...]:
        """Write `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json` and the vocabulary's files.

        Both longspan and `transformers` load them. A killed process leaves all old files or all new ones.

        Args:
            save_directory: Directory; made if it does not exist.

        Returns:
            Paths of the files.

        Raises:
            CheckpointError: `save_directory` is a file.
        """
        return save_tokenizer(self, Path(save_directory))

    def save_vocabulary(self, save_directory: str | os.PathLike[str]) -> tuple[str, ...]:
        """Write the vocabulary alone: `vocab.txt` (WordPiece), or `vocab.json` and `merges.txt` (BPE).

        Args:
            save_directory: A directory that exists.

        Returns:
            Paths of the files; none if the tokenizer's class is read from `tokenizer.json` only.
        """
        if set(self.vocabulary_files.values()) & {"vocab.txt", "vocab.json"}:
            return tuple(self._backend.tokenizer.model.save(str(save_directory)))
        return ()

    @classmethod
    def _build(cls, settings: dict[str, Any]) -> Tokenizer:
        """Make the `tokenizers` object of vocabulary files that `settings` name; classes of a model override it.

        They add to `settings`, in place, what the reference does only without `tokenizer.json`.
        """
        raise ConfigError(f"{cls.__name__} needs tokenizer_file or tokenizer_object. Received: {sorted(settings)}")

    @classmethod
    def _configure(cls, tokenizer: Tokenizer, settings: Mapping[str, Any]) -> None:
        """Make `tokenizer` follow `settings`, in place; classes of a model extend it."""
        add_prefix_space = settings.get("add_prefix_space", False)
        if add_prefix_space is not None:
            set_add_prefix_space(tokenizer, add_prefix_space)

    def _read_settings(self, settings: dict[str, Any]) -> None:
        for name, allowed in self.absent_settings.items():
            value = settings.get(name)
            if value not in (None, allowed, [], {}, ()):
                raise ConfigError(
                    f"{name} is not supported by {type(self).__name__}, except at {allowed!r}: longspan reads text as "
                    f"the reference's fast tokenizers do. Received: {name}={value!r}"
                )
        self.init_kwargs = copy.deepcopy(settings)
        self.name_or_path = str(settings.get("name_or_path", ""))
        limit = settings.get("model_max_length", settings.get("max_len"))
        if limit is None:
            limit = VERY_LARGE_INTEGER
        if isinstance(limit, bool) or not isinstance(limit, int | float) or not limit >= 1:
            raise ConfigError(f"model_max_length must be a number of tokens. Received: {limit!r}")
        self.model_max_length: int = int(min(limit, VERY_LARGE_INTEGER))
        self.padding_side = check_side("padding_side", settings.get("padding_side", "right"), ConfigError)
        self.truncation_side = check_side("truncation_side", settings.get("truncation_side", "right"), ConfigError)
        self.model_input_names: list[str] = list(settings.get("model_input_names") or self.default_model_input_names)
        self.clean_up_tokenization_spaces = bool(settings.get("clean_up_tokenization_spaces", False))
        self.split_special_tokens = bool(settings.get("split_special_tokens", False))
        self.pad_token_type_id = 0  # whatever the files say, as in the reference
        self.chat_template = settings.get("chat_template")
        self._init_special_tokens(settings, dict(settings.get("extra_special_tokens") or {}))

    def _register_tokens(self, added: Mapping[int, AddedToken]) -> None:
        """Make the tokenizer see added and special tokens as units, giving ids to those without one."""
        tokens: list[Token] = [added[index] for index in sorted(added)]
        names = {*self.added_tokens_encoder, *map(text_of, tokens)}
        tokens += [
            token
            for token in self.all_special_tokens_extended
            if (token not in names if isinstance(token, str) else token not in tokens)
        ]
        special = set(self.all_special_tokens)
        if tokens:
            self._backend.tokenizer.add_tokens([as_added(token, special=text_of(token) in special) for token in tokens])

    def __call__(
        self,
        text: TextInput | None = None,
        text_pair: TextInput | None = None,
        text_target: TextInput | None = None,
        text_pair_target: TextInput | None = None,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        verbose: bool = True,
        split_special_tokens: bool | None = None,
    ) -> BatchEncoding:
        """Tokenize one text, one pair, or a batch of them.

        A row longer than `model_max_length` that is not truncated is returned whole, with a warning. `truncation`
        without any known maximum cuts nothing, with a warning; `max_length` alone, without `padding` or `truncation`,
        cuts to it, with a warning. Each warning is given once per tokenizer.

        Args:
            text: A string, a list of strings, or a list of pairs of strings; with `is_split_into_words` a list of
                words or a list of such lists.
            text_pair: Second sequence of each row, in the same form.
            text_target: Texts whose ids are returned as `labels` (or alone, if `text` is None).
            text_pair_target: Second sequences of `text_target`.
            add_special_tokens: Add the special tokens of the model.
            padding: `True` or `"longest"` pads to the longest row, `"max_length"` to `max_length`.
            truncation: `True` or `"longest_first"`, `"only_first"`, `"only_second"`: what is cut to `max_length`.
            max_length: Number of tokens, special ones included; None takes `model_max_length`.
            stride: Number of tokens that neighbouring windows of a text share.
            is_split_into_words: Texts are lists of words.
            pad_to_multiple_of: Round the padded length up to a multiple of this.
            padding_side: `"right"` or `"left"`; None takes the tokenizer's.
            return_tensors: `"np"`, `"pt"`, `"tf"` or `"jax"`; None returns lists.
            return_token_type_ids: Return the segment of each token, 0 or 1.
            return_attention_mask: Return 1 for tokens, 0 for padding.
            return_overflowing_tokens: Return every window of a text that is cut, as further rows, and the text each
                row is from as `overflow_to_sample_mapping`.
            return_special_tokens_mask: Return 1 for special tokens and padding, 0 for tokens of the text.
            return_offsets_mapping: Return the characters (start, end) of each token in its text.
            return_length: Return the number of tokens of each row, padding included.
            verbose: False gives no warnings.
            split_special_tokens: Read special tokens inside texts as plain text; None takes the tokenizer's.

        Returns:
            Columns of `B` rows: lists, or tensors of shape `(B, S)`. A single text without `return_tensors` and
            `return_overflowing_tokens` gives columns without the batch axis.

        Raises:
            InputError: an argument breaks a rule, or rows of different lengths are to make a tensor.
            MissingFrameworkError: the framework of `return_tensors` is not installed.
        """
        if text is None and text_target is None:
            raise InputError("A call needs text or text_target. Received: None for both")
        warn = self._warn_once if verbose else be_silent
        limit = check_max_length(max_length)
        if limit is not None and padding is False and truncation is None:
            warn("truncation-not-asked", "max_length without truncation cuts to it; pass truncation=True to say so.")
            truncation = True
        cut = resolve_truncation(
            truncation,
            max_length=limit,
            model_max_length=self.model_max_length,
            stride=stride,
            side=self.truncation_side,
            warn=warn,
        )
        fill_up, fill = self._padding(padding, limit, pad_to_multiple_of, padding_side, warn)
        check_multiple(fill_up, cut)
        if padding is True and limit is not None and cut is None:
            warn(
                "max-length-ignored", "padding=True pads to the longest row: without truncation, max_length is unused."
            )
        request = Request(
            truncation=cut,
            padding=fill_up,
            fill=fill,
            wanted=self._wanted(
                return_token_type_ids,
                return_attention_mask,
                special_tokens_mask=return_special_tokens_mask,
                offset_mapping=return_offsets_mapping,
                length=return_length,
            ),
            convert=None if return_tensors is None else tensor_converter(return_tensors),
            add_special_tokens=add_special_tokens,
            is_split_into_words=is_split_into_words,
            split_special_tokens=self.split_special_tokens if split_special_tokens is None else split_special_tokens,
            overflowing=return_overflowing_tokens,
            warn_longer=self.model_max_length if limit is None and cut is None else None,
            warn=warn,
        )
        if text is None:
            return self._encode(text_target, text_pair_target, request)
        encoded = self._encode(text, text_pair, request)
        if text_target is not None:
            encoded["labels"] = self._encode(text_target, text_pair_target, request)["input_ids"]
        return encoded

    def _encode(self, text: Any, text_pair: Any, request: Request) -> BatchEncoding:
        batch = read_batch(text, text_pair, is_split_into_words=request.is_split_into_words)
        self._check_words(request.is_split_into_words)
        return request.run(self._backend, batch)

    def _check_words(self, is_split_into_words: bool) -> None:
        """Raise `InputError` if texts split into words cannot be read; classes of a model override it."""

    def _wanted(self, token_type_ids: bool | None, attention_mask: bool | None, **others: bool) -> Wanted:
        names = self.model_input_names
        return Wanted(
            token_type_ids="token_type_ids" in names if token_type_ids is None else token_type_ids,
            attention_mask="attention_mask" in names if attention_mask is None else attention_mask,
            **others,
        )

    def _padding(
        self, padding: Any, max_length: int | None, multiple: int | None, side: str | None, warn: Warn
    ) -> tuple[Padding | None, Fill]:
        resolved = resolve_padding(
            padding,
            max_length=max_length,
            model_max_length=self.model_max_length,
            side=self.padding_side if side is None else side,
            multiple=multiple,
            warn=warn,
        )
        return resolved, NO_FILL if resolved is None else self._fill()

    def _fill(self) -> Fill:
        token = self.pad_token
        index = None if token is None else self._backend.tokenizer.token_to_id(token)
        if token is None or index is None:
            raise InputError(
                "Padding needs a pad_token of the vocabulary: set tokenizer.pad_token = tokenizer.eos_token, or add "
                f"one with tokenizer.add_special_tokens({{'pad_token': '[PAD]'}}). Received: pad_token={token!r}"
            )
        return Fill(token, index, self.pad_token_type_id)

    def _warn_once(self, key: str, message: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(message, UserWarning, stacklevel=_frames_inside())

    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False, **kwargs: Any
    ) -> list[str]:
        """Tokens of a text (or pair) as strings.

        Args:
            text: The text.
            pair: Second text.
            add_special_tokens: Add the special tokens of the model.
            **kwargs: Arguments of a call.

        Returns:
            The tokens.
        """
        arguments = {"return_offsets_mapping": True, "add_special_tokens": add_special_tokens} | kwargs
        return self(text, pair, **arguments).tokens()

    def encode(
        self,
        text: TextInput,
        text_pair: TextInput | None = None,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Ids of a text (or pair): the `input_ids` of a call with the same arguments."""
        encoded = self(
            text,
            text_pair,
            add_special_tokens=add_special_tokens,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            stride=stride,
            padding_side=padding_side,
            return_tensors=return_tensors,
            **kwargs,
        )
        return encoded["input_ids"]

    def encode_plus(self, text: TextInput, text_pair: TextInput | None = None, **kwargs: Any) -> BatchEncoding:
        """The same as a call on one text or pair (an older name)."""
        return self(text, text_pair, **kwargs)

    def batch_encode_plus(self, batch_text_or_text_pairs: TextInput, **kwargs: Any) -> BatchEncoding:
        """The same as a call on a list of texts or pairs (an older name)."""
        return self(batch_text_or_text_pairs, **kwargs)

    def pad(
        self,
        encoded_inputs: Any,
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Pad rows that are tokenized already, as a data loader's collator does.

        Args:
            encoded_inputs: What calls returned: one, several in a list, or columns of rows. `input_ids`,
                `token_type_ids`, `attention_mask` and `special_tokens_mask` are padded, other columns are not.
            padding: `True` or `"longest"`, `"max_length"`, or `False`.
            max_length: Number of tokens for `"max_length"`; None takes `model_max_length`.
            pad_to_multiple_of: Round the padded length up to a multiple of this.
            padding_side: `"right"` or `"left"`; None takes the tokenizer's.
            return_attention_mask: Add `attention_mask` if it is missing; None does if the model reads it.
            return_tensors: `"np"`, `"pt"`, `"tf"` or `"jax"`; None returns tensors if rows are tensors, else lists.
            verbose: False gives no warnings.

        Returns:
            The columns, padded.

        Raises:
            InputError: the rows do not hold the same columns, or no `input_ids`.
        """
        warn = self._warn_once if verbose else be_silent
        fill_up, fill = self._padding(padding, check_max_length(max_length), pad_to_multiple_of, padding_side, warn)
        main = self.model_input_names[0]
        features = read_features(encoded_inputs, main=main)
        kind = return_tensors or features.tensor_kind
        convert = None if kind is None else tensor_converter(kind)
        columns = features.columns
        lengths = [len(row) for row in columns[main]]
        mask = "attention_mask" in self.model_input_names if return_attention_mask is None else return_attention_mask
        if mask and "attention_mask" not in columns:
            columns["attention_mask"] = [[1] * length for length in lengths]
        length = min(lengths, default=0) if fill_up is None else fill_up.target(max(lengths, default=0))
        side = "right" if fill_up is None else fill_up.side
        if features.is_batched and convert is not None:
            return BatchEncoding(to_tensors(columns, length=length, side=side, fill=fill, convert=convert))
        if fill_up is not None:
            columns = pad_lists(columns, length=length, side=side, fill=fill)
        data = columns if features.is_batched else {name: rows[0] for name, rows in columns.items()}
        return BatchEncoding(data, tensor_type=kind)

    def train_new_from_iterator(
        self,
        text_iterator: Iterable[str] | Iterable[Sequence[str]],
        vocab_size: int,
        length: int | None = None,
        new_special_tokens: Sequence[Token] | None = None,
        special_tokens_map: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """A tokenizer of the same kind with a vocabulary learned from other texts.

        Args:
            text_iterator: Texts, or batches of them.
            vocab_size: Number of tokens, special ones included.
            length: Number of texts.
            new_special_tokens: Further special tokens.
            special_tokens_map: Other texts for special tokens, old to new.
            **kwargs: Further arguments of the trainer of the `tokenizers` library.

        Returns:
            The new tokenizer.

        Raises:
            ConfigError: there is no trainer for this kind of model.
        """
        renamed, new_tokens = dict(special_tokens_map or {}), list(new_special_tokens or ())
        trained = train_like(
            self._backend.tokenizer,
            text_iterator,
            vocab_size=vocab_size,
            length=length,
            new_tokens=new_tokens,
            renamed=renamed,
            options=kwargs,
        )
        settings = {name: value for name, value in self.init_kwargs.items() if name not in self.vocabulary_files}
        for name, value in self.special_tokens_map.items():
            if isinstance(value, str):
                settings[name] = renamed.get(value, value)
        others = [renamed.get(token, token) for token in self.additional_special_tokens]
        settings["additional_special_tokens"] = [*others, *new_tokens]
        return type(self)(tokenizer_object=trained, **settings)

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        tools: Sequence[Any] | None = None,
        documents: Sequence[Mapping[str, str]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        padding: bool | str = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        return_dict: bool = False,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Lay out a conversation, or several, by the checkpoint's chat template; see `longspan.tokenization.chat`.

        Args:
            conversation: Messages, `{"role": "user", "content": "..."}`, or a list of such lists.
            tools: JSON schemas of functions that the model may call.
            documents: Documents for the model to use.
            chat_template: A template, or the name of one of the tokenizer's; None takes the tokenizer's.
            add_generation_prompt: Begin the answer of the model.
            continue_final_message: End the text inside the last message.
            tokenize: Return ids rather than text.
            padding: As in a call.
            truncation: As in a call.
            max_length: As in a call.
            return_tensors: As in a call.
            return_dict: Return all columns rather than the ids.
            tokenizer_kwargs: Further arguments of the call.
            **kwargs: Further variables of the template.

        Returns:
            Text, ids or columns; of one conversation, or lists of them.

        Raises:
            InputError: there is no template, it refuses the conversation, or arguments contradict each other.
            ConfigError: the template fails.
        """
        if continue_final_message and add_generation_prompt:
            raise InputError("continue_final_message=True and add_generation_prompt=True exclude each other")
        if any(callable(tool) for tool in tools or ()):
            raise InputError("tools must be JSON schemas. Received: a function")
        template = chat.choose_template(self.chat_template, chat_template, has_tools=bool(tools))
        batch, is_batch = chat.conversations(conversation)
        variables = {**self.special_tokens_map, "tools": tools, "documents": documents, **kwargs}
        texts = [chat.render(template, row, add_generation_prompt=add_generation_prompt, **variables) for row in batch]
        if continue_final_message:
            texts = [chat.without_end(text, row) for text, row in zip(texts, batch, strict=True)]
        if not tokenize:
            return texts if is_batch else texts[0]
        encoded = self(
            texts if is_batch else texts[0],
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            add_special_tokens=False,
            return_tensors=return_tensors,
            **(tokenizer_kwargs or {}),
        )
        return encoded if return_dict else encoded["input_ids"]

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str:
        """Text of one row of ids.

        Args:
            token_ids: One id or a row of them: list, array or tensor of shape `(S,)`. Ids that the vocabulary lacks
                are left out.
            skip_special_tokens: Leave out special tokens.
            clean_up_tokenization_spaces: Remove blanks before English punctuation; None takes the tokenizer's.

        Returns:
            The text.

        Raises:
            InputError: `token_ids` is not a row of ids.
        """
        ids = to_lists(token_ids)
        return self._decode_rows([[ids] if isinstance(ids, int) else ids], skip_special_tokens,
                                 clean_up_tokenization_spaces)[0]  # fmt: skip

    def batch_decode(
        self,
        sequences: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        """Texts of rows of ids.

        Args:
            sequences: Rows of ids: lists, or an array or tensor of shape `(B, S)`.
            skip_special_tokens: Leave out special tokens.
            clean_up_tokenization_spaces: Remove blanks before English punctuation; None takes the tokenizer's.

        Returns:
            `B` texts.

        Raises:
            InputError: `sequences` is not a list of rows of ids.
        """
        rows = [[row] if isinstance(row, int) else row for row in to_lists(sequences)]
        return self._decode_rows(rows, skip_special_tokens, clean_up_tokenization_spaces)

    def _decode_rows(self, rows: list[Any], skip_special_tokens: bool, clean_up: bool | None) -> list[str]:
        for row in rows:
            if not isinstance(row, list):
                raise InputError(f"decode takes a row of token ids. Received: {type(row).__name__}")
        try:
            texts = self._backend.tokenizer.decode_batch(rows, skip_special_tokens=skip_special_tokens)
        except (TypeError, OverflowError):
            for row in rows:
                check_ids(row)
            raise
        tidy = self.clean_up_tokenization_spaces if clean_up is None else clean_up
        return [self.clean_up_tokenization(text) for text in texts] if tidy else list(texts)

    @staticmethod
    def clean_up_tokenization(out_string: str) -> str:
        """The text without the blanks that tokenization leaves before English punctuation and contractions."""
        for blanked, tidy in _ENGLISH_BLANKS:
            out_string = out_string.replace(blanked, tidy)
        return out_string


def _frames_inside() -> int:
    """Number of calls between a warning and the code that called longspan: `stacklevel`."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("longspan."):
        frame, level = frame.f_back, level + 1
    return level


def _settings_inside(tokenizer: Tokenizer) -> dict[str, Any]:
    """Settings that a `tokenizer.json` holds besides the tokenizer: those of its truncation and padding."""
    settings: dict[str, Any] = {}
    if tokenizer.truncation is not None:
        settings["truncation_side"] = tokenizer.truncation["direction"]
    if tokenizer.padding is not None:
        settings["pad_token"] = tokenizer.padding["pad_token"]
        settings["pad_token_type_id"] = tokenizer.padding["pad_type_id"]
        settings["padding_side"] = tokenizer.padding["direction"]
    return settings


_ENGLISH_BLANKS = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)
