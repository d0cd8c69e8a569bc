"""`tokenizers` objects assembled from vocabularies, and changes of their components."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from longspan.errors import CheckpointError
from longspan.tokenization.files import library_errors
from longspan.tokenization.sentencepiece import CONTROL, USER_DEFINED, SentencePieceModel


def wordpiece_tokenizer(
    vocab: Mapping[str, int],
    *,
    unk_token: str,
    cls_token: str,
    sep_token: str,
    do_lower_case: bool,
    strip_accents: bool | None,
    tokenize_chinese_chars: bool,
) -> Tokenizer:
    """BERT's tokenizer: clean and lower text, split at blanks and punctuation, longest pieces first.

    Args:
        vocab: Ids of the word pieces.
        unk_token: Stands for words that no pieces make.
        cls_token: First token of a row.
        sep_token: Last token of each sequence.
        do_lower_case: Lower the text.
        strip_accents: Remove accents; None does so when lowering.
        tokenize_chinese_chars: Split at each CJK character.

    Returns:
        The tokenizer, without added tokens.

    Raises:
        CheckpointError: the vocabulary lacks one of the three tokens.
    """
    for token in (unk_token, cls_token, sep_token):
        if token not in vocab:
            raise CheckpointError(
                f"The vocabulary (vocab.txt) must hold the token {token!r}. It has {len(vocab)} others"
            )
    tokenizer = Tokenizer(models.WordPiece(dict(vocab), unk_token=unk_token))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=tokenize_chinese_chars,
        strip_accents=strip_accents,
        lowercase=do_lower_case,
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls_token}:0 $A:0 {sep_token}:0",
        pair=f"{cls_token}:0 $A:0 {sep_token}:0 $B:1 {sep_token}:1",
        special_tokens=[(cls_token, vocab[cls_token]), (sep_token, vocab[sep_token])],
    )
    return tokenizer


def byte_level_tokenizer(
    vocab: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    *,
    cls_token: str,
    sep_token: str,
    add_prefix_space: bool,
    trim_offsets: bool,
) -> Tokenizer:
    """RoBERTa's tokenizer (Longformer, MEGA): byte pair encoding of UTF-8 bytes.

    Args:
        vocab: Ids of the tokens.
        merges: Pairs of tokens in the order in which they are merged.
        cls_token: First token of a row.
        sep_token: Last token of each sequence; two of them stand between sequences.
        add_prefix_space: Read the first word as if a blank stood before it.
        trim_offsets: Leave blanks out of the characters of a token.

    Returns:
        The tokenizer, without added tokens.

    Raises:
        CheckpointError: the vocabulary lacks a token that it needs.
    """
    for token in (cls_token, sep_token):
        if token not in vocab:
            raise CheckpointError(
                f"The vocabulary (vocab.json) must hold the token {token!r}. It has {len(vocab)} others"
            )
    with library_errors("merges.txt must hold pairs of tokens of vocab.json"):
        model = models.BPE(
            vocab=dict(vocab), merges=list(merges), continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False
        )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(
        sep=(sep_token, vocab[sep_token]),
        cls=(cls_token, vocab[cls_token]),
        add_prefix_space=add_prefix_space,
        trim_offsets=trim_offsets,
    )
    return tokenizer


def llama_tokenizer(model: SentencePieceModel, *, legacy: bool, add_prefix_space: bool) -> Tokenizer:
    """Llama's tokenizer (DiffLlama): a SentencePiece BPE or unigram model, unknown characters read as bytes.

    Args:
        model: The SentencePiece model.
        legacy: Blanks are replaced in the normalization, so that one stands before each part between special tokens.
        add_prefix_space: Read a text as if a blank stood before it.

    Returns:
        The tokenizer, with control and user-defined pieces as added tokens; it adds nothing to a text.

    Raises:
        CheckpointError: the model is neither BPE nor unigram.
    """
    vocab = {piece.text: index for index, piece in enumerate(model.pieces)}
    with library_errors("tokenizer.model must hold a vocabulary"):
        if model.model_type == "BPE":
            unknown = model.pieces[model.unk_id].text
            core = models.BPE(vocab, _merges(model, vocab), unk_token=unknown, fuse_unk=True, byte_fallback=True)
        elif model.model_type == "unigram":
            scores = [(piece.text, piece.score if index > 2 else 0.0) for index, piece in enumerate(model.pieces)]
            core = models.Unigram(scores, unk_id=model.unk_id, byte_fallback=True)
        else:
            raise CheckpointError(
                f"tokenizer.model must be a BPE or unigram model. Received: a {model.model_type} model"
            )
        tokenizer = Tokenizer(core)
        tokenizer.add_tokens(_added_pieces(model))
    blank = [normalizers.Prepend("▁")] if add_prefix_space else []
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([*blank, normalizers.Replace(" ", "▁")])
    else:
        scheme = "first" if add_prefix_space else "never"
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    strip = [decoders.Strip(" ", 1, 0)] if add_prefix_space else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _merges(model: SentencePieceModel, vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    """Pairs of pieces in the order in which BPE joins them: by the score of the piece that they make."""
    found = []
    for piece in model.pieces:
        cuts = ((piece.text[:at], piece.text[at:]) for at in range(1, len(piece.text)))
        pairs = sorted((vocab[a], vocab[b], a, b) for a, b in cuts if a in vocab and b in vocab)
        found += [(piece.score, len(left), len(right), left, right) for _, _, left, right in pairs]
    found.sort(key=lambda merge: merge[:3], reverse=True)
    return [(left, right) for *_, left, right in found]


def _added_pieces(model: SentencePieceModel) -> list[AddedToken]:
    """Control pieces, which are special, and user-defined ones, as units of the text."""
    return [
        AddedToken(piece.text, normalized=False, special=piece.kind == CONTROL)
        for piece in model.pieces
        if piece.kind in (CONTROL, USER_DEFINED)
    ]


def unigram_tokenizer(model: SentencePieceModel, *, extra_ids: int, eos_token: str, prepend_scheme: str) -> Tokenizer:
    """T5's tokenizer (LongT5): the most probable pieces of a SentencePiece unigram model, then `</s>`.

    Args:
        model: The SentencePiece model.
        extra_ids: Number of sentinels; `<extra_id_0>` has the highest id.
        eos_token: Last token of each sequence.
        prepend_scheme: Where a text is read as if a blank stood before it: `"always"` (before every part between
            special tokens), `"first"` or `"never"`.

    Returns:
        The tokenizer, with control and user-defined pieces as added tokens.

    Raises:
        CheckpointError: the model is not a unigram model, or lacks the last token.
    """
    if model.model_type != "unigram":
        raise CheckpointError(f"spiece.model must be a unigram model. Received: a {model.model_type} model")
    vocab = [(piece.text, piece.score) for piece in model.pieces]
    vocab += [(f"<extra_id_{index}>", 0.0) for index in reversed(range(extra_ids))]
    ids = {text: index for index, (text, _) in enumerate(vocab)}
    if eos_token not in ids:
        raise CheckpointError(
            f"The vocabulary (spiece.model) must hold the token {eos_token!r}. It has {len(ids)} others"
        )
    with library_errors("spiece.model must hold a vocabulary and normalization rules"):
        tokenizer = Tokenizer(models.Unigram(vocab, unk_id=model.unk_id, byte_fallback=False))
        rules = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    tokenizer.add_tokens(_added_pieces(model))
    blanks = [normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), "▁")]
    tokenizer.normalizer = normalizers.Sequence([*rules, *blanks])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=prepend_scheme)
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme=prepend_scheme)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {eos_token}",
        pair=f"$A {eos_token} $B {eos_token}",
        special_tokens=[(eos_token, ids[eos_token])],
    )
    return tokenizer


def bos_eos_processor(bos: tuple[str, int] | None, eos: tuple[str, int] | None) -> processors.TemplateProcessing:
    """Post-processor that puts `bos` before and `eos` after each sequence (token and id; None for none)."""
    parts = [[bos, "$A", eos], [bos, "$B", eos]]
    texts = [
        [f"{part if isinstance(part, str) else part[0]}:{side}" for part in sequence if part is not None]
        for side, sequence in enumerate(parts)
    ]
    return processors.TemplateProcessing(
        single=texts[0], pair=texts[0] + texts[1], special_tokens=[token for token in (bos, eos) if token is not None]
    )


def set_prepend_scheme(tokenizer: Tokenizer, scheme: str) -> None:
    """Set where pre-tokenizer and decoder put a blank before a text, if they are of SentencePiece's kind."""
    _replace_component(tokenizer, "pre_tokenizer", pre_tokenizers, {"prepend_scheme": scheme})
    _replace_component(tokenizer, "decoder", decoders, {"prepend_scheme": scheme})


def set_add_prefix_space(tokenizer: Tokenizer, value: bool) -> None:
    """Set `add_prefix_space` of the pre-tokenizer, if it has one."""
    _replace_component(tokenizer, "pre_tokenizer", pre_tokenizers, {"add_prefix_space": value})


def set_byte_level_offsets(tokenizer: Tokenizer, *, add_prefix_space: bool, trim_offsets: bool) -> None:
    """Set how the post-processor trims blanks off the characters of a token, if it does."""
    settings = {"add_prefix_space": add_prefix_space, "trim_offsets": trim_offsets}
    _replace_component(tokenizer, "post_processor", processors, settings)


def set_bert_normalizer(
    tokenizer: Tokenizer, *, do_lower_case: bool, strip_accents: bool | None, tokenize_chinese_chars: bool
) -> None:
    """Set how the normalizer reads text, if it is BERT's."""
    settings = {
        "lowercase": do_lower_case,
        "strip_accents": strip_accents,
        "handle_chinese_chars": tokenize_chinese_chars,
    }
    _replace_component(tokenizer, "normalizer", normalizers, settings)


def _replace_component(tokenizer: Tokenizer, name: str, module: Any, settings: Mapping[str, Any]) -> None:
    """Replace a component by one with other `settings`; those that it does not have are left out."""
    component = getattr(tokenizer, name)
    if component is None:
        return
    state = json.loads(component.__getstate__())
    known = {key: value for key, value in settings.items() if key in state}
    if all(state[key] == value for key, value in known.items()):
        return
    state.update(known)
    make = getattr(module, state.pop("type"))
    setattr(tokenizer, name, make(**{key: tuple(v) if isinstance(v, list) else v for key, v in state.items()}))
