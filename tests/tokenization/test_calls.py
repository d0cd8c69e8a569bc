"""Calls that break a rule, warnings, decoding, special tokens and padding of features."""

from __future__ import annotations

import enum
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.tokenization.conftest import Pair, load_reference, make_pair
from tests.tokenization.corpus import ENGLISH, TEXTS
from tokenizers import AddedToken

from longspan import AutoTokenizer, BatchEncoding
from longspan.errors import ConfigError, InputError

TEXT_LIST = list(TEXTS.values())


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {}, "A call needs text or text_target. Received: None for both"),
        ((3,), {}, "text must be a string, a list of strings, .* Received: text of type int"),
        (({"a"},), {}, "Received: text of type set"),
        ((np.array(["a"]),), {}, "Received: text of type ndarray"),
        ((b"a",), {}, "Received: text of type bytes"),
        ((["a", None],), {}, r"Received: text\[1\] of type NoneType"),
        (([None],), {}, r"Received: text\[0\] of type NoneType"),
        ((["a", ["b"]],), {}, r"Received: text\[1\] of type list"),
        (([["a", "b", "c"]],), {}, r"lists of words need is_split_into_words=True. Received: text\[0\] with 3 strings"),
        (([["a"]],), {}, r"lists of words need is_split_into_words=True. Received: text\[0\] with 1 strings"),
        (([["a", 1]],), {}, r"Received: text\[0\] of type list"),
        (([["a", "b"], "c"],), {}, r"Received: text\[1\] of type str"),
        (("a", 3), {}, "Received: text_pair of type int"),
        (("a", ["b"]), {}, "Received: text_pair of type list"),
        ((["a"], "b"), {}, "text_pair must be a list of the same length. Received: text_pair of type str"),
        ((["a", "b"], ["c"]), {}, "text and text_pair must have the same number of rows. Received: 2 and 1"),
        ((["a"], [None]), {}, r"Received: text_pair\[0\] of type NoneType"),
        (("a",), {"is_split_into_words": True}, "text must be a list of words, .* Received: text of type str"),
        ((["a", 1],), {"is_split_into_words": True}, r"Received: text\[1\] of type int"),
        (([["a"], "b"],), {"is_split_into_words": True}, r"Received: text\[1\] of type str"),
        (([["a"], [["b"]]],), {"is_split_into_words": True}, r"Received: text\[1\]\[0\] of type list"),
        ((), {"text_target": 3}, "Received: text of type int"),
        (("a\ud800b",), {}, r"valid Unicode without lone surrogates .* Received: '\\ud800' at character 1 of text 0"),
        ((["a", "b"], ["c", "\udfff"]), {}, "at character 0 of text 1"),
        (("a",), {"padding": "longst"}, "padding must be True, False, 'longest', .* Received: padding='longst'"),
        (("a",), {"padding": 1}, "Received: padding=1"),
        (("a",), {"truncation": "first"}, "truncation must be .*'only_first'.* Received: truncation='first'"),
        (("a",), {"truncation": ["only_first"]}, r"Received: truncation=\['only_first'\]"),
        (("a",), {"padding_side": "middle"}, "padding_side must be 'right' or 'left'. Received: padding_side='middle'"),
        (("a",), {"max_length": 0}, "max_length must be an integer of at least 1. Received: max_length=0"),
        (("a",), {"max_length": 8.0}, "Received: max_length=8.0"),
        (("a",), {"max_length": True}, "Received: max_length=True"),
        (("a",), {"stride": -1}, "stride must be an integer of at least 0. Received: stride=-1"),
        (("a",), {"pad_to_multiple_of": 0}, "pad_to_multiple_of must be an integer of at least 1"),
        (
            ("a",),
            {"truncation": True, "padding": True, "max_length": 9, "pad_to_multiple_of": 4},
            "max_length must be a multiple of pad_to_multiple_of. Received: max_length=9, pad_to_multiple_of=4",
        ),
        (("a",), {"truncation": True, "max_length": 1}, "max_length must be at least 2, the number of special tokens"),
        (("a", "b"), {"truncation": True, "max_length": 2}, "max_length must be at least 3"),
        (
            ("a",),
            {"truncation": True, "max_length": 8, "stride": 6},
            "stride must be less than max_length minus the 2 special tokens. Received: stride=6, max_length=8",
        ),
        (("a",), {"truncation": True, "max_length": 8, "stride": 9}, "Received: stride=9, max_length=8"),
        (
            ("a b c d", "e f g h i j k"),
            {"truncation": "only_second", "max_length": 10, "stride": 3},
            r"stride must be less than the 3 tokens that max_length=10 leaves .* Received: stride=3 \(row 0\)",
        ),
        (
            (["a", "e f g h i j k"], ["a", "a b c d"]),
            {"truncation": "only_first", "max_length": 10, "stride": 3},
            r"less than the 3 tokens that max_length=10 leaves .* Received: stride=3 \(row 1\)",
        ),
        (
            ("a b c d e f g", "e f g h i j k"),
            {"truncation": True, "max_length": 11, "stride": 4},
            r"less than the 4 tokens that max_length=11 leaves",
        ),
        (
            ("a b c d e f g", "e"),
            {"truncation": "only_second", "max_length": 8},
            "'only_second' cuts one sequence of a pair, and the other one alone does not fit max_length=8",
        ),
        (("a " * 20,), {"truncation": "only_second", "max_length": 8}, "truncation='only_second' needs pairs of texts"),
    ],
)
def test_wrong_calls(bert: Pair, args: tuple[Any, ...], kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        bert.ours(*args, **kwargs)


def test_unknown_argument(bert: Pair) -> None:
    with pytest.raises(TypeError, match="pading"):
        bert.ours("a", pading=True)


@pytest.mark.parametrize("strategy", ["only_first", "only_second", "longest_first"])
def test_every_window_moves_on(bert: Pair, strategy: str) -> None:
    """For every stride there is either the reference's answer or an error, and never the library's abort."""
    first, second = "a b c d e", "f g h i j k l m n"
    answers = 0
    for max_length in range(4, 19):
        for stride in range(1, 15):
            kwargs = {"truncation": strategy, "max_length": max_length, "stride": stride,
                      "return_overflowing_tokens": True}  # fmt: skip
            try:
                ours = bert.ours([first, second], [second, "x"], **kwargs)
            except InputError:
                continue
            theirs = bert.theirs([first, second], [second, "x"], **kwargs)
            assert ours.input_ids == theirs.input_ids
            answers += 1
    assert answers >= 20


def test_words_need_a_blank_before_each(checkpoints: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="needs a LongformerTokenizer made with add_prefix_space=True"):
        AutoTokenizer.from_pretrained(checkpoints["longformer"])(["a", "b"], is_split_into_words=True)


def test_no_pad_token(checkpoints: dict[str, Path]) -> None:
    rule = "Padding needs a pad_token of the vocabulary: set tokenizer.pad_token = tokenizer.eos_token"
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["llama"], pad_token=None)
    assert tokenizer.pad_token is None
    assert tokenizer.pad_token_id is None
    with pytest.raises(InputError, match=f"{rule}.*Received: pad_token=None"):
        tokenizer("a", padding=True)
    tokenizer.pad_token = "<nowhere>"
    for pad in (
        lambda: tokenizer("a", padding="max_length", max_length=4),
        lambda: tokenizer.pad([{"input_ids": [1]}]),
    ):
        with pytest.raises(InputError, match=f"{rule}.*Received: pad_token='<nowhere>'"):
            pad()
    tokenizer.pad_token = tokenizer.eos_token
    assert tokenizer(["a", "a b"], padding=True).input_ids[0][0] == tokenizer.eos_token_id
    assert tokenizer("a", padding=False).input_ids, "no padding, no pad token needed"


def warned(call: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(warning.message) for warning in caught]


def test_longer_than_the_model(fresh_bert: Any) -> None:
    long = "word " * 600
    messages = warned(lambda: fresh_bert([long, "a"]))
    assert messages == [
        "A text has 602 tokens, more than the 512 that the model reads (model_max_length): pass truncation=True, or "
        "split it by return_overflowing_tokens=True."
    ]
    assert warned(lambda: fresh_bert(long)) == [], "once per tokenizer"
    again = AutoTokenizer.from_pretrained(fresh_bert.name_or_path)
    assert warned(lambda: again(long, verbose=False)) == []
    assert warned(lambda: again(long, truncation=True)) == []
    assert warned(lambda: again(long, truncation=True, max_length=600)) == []
    assert len(again(long, verbose=False).input_ids) == 602, "nothing is cut unasked"
    with pytest.warns(UserWarning, match="A text has 602 tokens") as record:
        again(long)
    assert record[0].filename == __file__, "the warning points at the caller"


def test_nothing_to_cut_or_pad_to(checkpoints: dict[str, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["longt5"])
    long = "word " * 600
    assert warned(lambda: tokenizer(long, truncation=True)) == [
        "truncation needs max_length or a tokenizer with model_max_length: neither is known, so nothing is cut."
    ]
    assert len(tokenizer(long, truncation=True).input_ids) > 600
    assert warned(lambda: tokenizer("a", padding="max_length")) == [
        "padding='max_length' needs max_length or a tokenizer with model_max_length: neither is known, so nothing is "
        "padded."
    ]
    theirs = load_reference(checkpoints["longt5"])
    assert tokenizer("a", padding="max_length").input_ids == theirs("a", padding="max_length").input_ids


def test_max_length_alone(fresh_bert: Any, bert: Pair) -> None:
    assert warned(lambda: fresh_bert(ENGLISH, max_length=8)) == [
        "max_length without truncation cuts to it; pass truncation=True to say so."
    ]
    assert fresh_bert(ENGLISH, max_length=8).input_ids == bert.theirs(ENGLISH, max_length=8).input_ids
    assert len(fresh_bert(ENGLISH, max_length=8, truncation=False).input_ids) > 8
    assert warned(lambda: fresh_bert(ENGLISH, max_length=8, padding=True)) == [
        "padding=True pads to the longest row: without truncation, max_length is unused."
    ]


def test_names_may_be_enums(bert: Pair) -> None:
    """The reference's enumerations (`PaddingStrategy.LONGEST`, `TensorType.NUMPY`) work."""

    class Name(enum.Enum):
        LONGEST = "longest"
        FIRST = "only_first"
        NUMPY = "np"

    batch = bert.ours(["a", "a b"], padding=Name.LONGEST, truncation=Name.FIRST, return_tensors=Name.NUMPY)
    assert batch.input_ids.shape == (2, 4)


def test_split_special_tokens(main_pair: Pair, checkpoints: dict[str, Path]) -> None:
    text = TEXTS[{"bert_json": "special_bert", "longt5": "special_t5"}.get(main_pair.name, "special_roberta")]
    whole, split = main_pair.ours.encode(text), main_pair.ours.encode(text, split_special_tokens=True)
    assert whole != split
    assert split == main_pair.theirs.encode(text, split_special_tokens=True)
    assert main_pair.ours.encode(text) == whole, "the setting does not stay"
    changed = AutoTokenizer.from_pretrained(main_pair.path, split_special_tokens=True)
    assert changed.encode(text) == split


@pytest.mark.parametrize("skip_special_tokens", [False, True])
@pytest.mark.parametrize("clean_up", [None, False, True])
def test_decode(pair: Pair, skip_special_tokens: bool, clean_up: bool | None) -> None:
    rows = pair.theirs(TEXT_LIST, TEXT_LIST[::-1], verbose=False)["input_ids"]
    kwargs = {"skip_special_tokens": skip_special_tokens, "clean_up_tokenization_spaces": clean_up}
    expected = pair.theirs.batch_decode(rows, **kwargs)
    assert pair.ours.batch_decode(rows, **kwargs) == expected
    assert [pair.ours.decode(row, **kwargs) for row in rows] == expected
    assert pair.ours.decode(rows[0][3], **kwargs) == pair.theirs.decode(rows[0][3], **kwargs)
    tokens = pair.theirs.convert_ids_to_tokens(rows[0])
    assert pair.ours.convert_ids_to_tokens(rows[0]) == tokens
    assert pair.ours.convert_ids_to_tokens(rows[0], skip_special_tokens=True) == (
        pair.theirs.convert_ids_to_tokens(rows[0], skip_special_tokens=True)
    )
    assert pair.ours.convert_tokens_to_ids(tokens) == rows[0]
    assert pair.ours.convert_tokens_to_string(tokens) == pair.theirs.convert_tokens_to_string(tokens)


def test_decode_forms(bert: Pair) -> None:
    tokenizer = bert.ours
    assert tokenizer.decode(7592) == tokenizer.decode([7592]) == tokenizer.decode(np.int64(7592)) == "hello"
    assert tokenizer.decode(np.array([7592, 2088])) == tokenizer.decode((7592, np.int32(2088))) == "hello world"
    assert tokenizer.batch_decode(np.array([[7592], [2088]])) == tokenizer.batch_decode([7592, 2088])
    assert tokenizer.decode([]) == ""
    assert tokenizer.decode([7592, 40_000]) == bert.theirs.decode([7592, 40_000]) == "hello", (
        "an unknown id is left out"
    )
    assert tokenizer.decode(tokenizer.encode("it ' s , ok ."), True, True) == "it's, ok."
    for wrong, message in {
        "text": "decode takes a row of token ids. Received: str",
        None: "decode takes a row of token ids. Received: NoneType",
        (-100, 5): "Token ids must not be negative .*-100 of ignored labels.* Received: -100 at position 0",
        (5, 2**40): "less than 2\\*\\*32. Received: 1099511627776 at position 1",
        (1, 2.5): "Token ids must be integers. Received: 2.5 at position 1",
        ((1, 2), (3,)): r"integers \(batch_decode takes several rows\). Received: \[1, 2\] at position 0",
    }.items():
        with pytest.raises(InputError, match=message):
            tokenizer.decode(wrong)
    with pytest.raises(InputError, match="Token ids must not be negative"):
        tokenizer.convert_ids_to_tokens([-1])


def test_with_collators_of_the_reference(bert: Pair) -> None:
    """Data collators of the reference, and so its trainer, take the tokenizer."""
    import torch
    import transformers

    rows = [bert.ours(text) for text in (ENGLISH, "short", "a [MASK] b")]
    batch = transformers.DataCollatorWithPadding(bert.ours, pad_to_multiple_of=8)(rows)
    assert batch["input_ids"].shape == (3, 32)
    assert batch["attention_mask"].sum() == sum(len(row.input_ids) for row in rows)
    labelled = [{**row, "labels": [1] * len(row.input_ids)} for row in rows]
    labels = transformers.DataCollatorForTokenClassification(bert.ours)(labelled)["labels"]
    assert (labels == -100).sum() == (batch["input_ids"][:, : labels.shape[1]] == 0).sum()
    results = []
    for tokenizer in (bert.ours, bert.theirs):
        torch.manual_seed(0)
        results.append(transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.4)(rows))
    for key in results[1]:
        assert torch.equal(results[0][key], results[1][key])


def test_vocabulary(bert: Pair) -> None:
    ours, theirs = bert.ours, bert.theirs
    assert ours.vocab == ours.get_vocab() == theirs.get_vocab()
    assert len(ours) == ours.vocab_size == 30522
    assert bool(ours)
    assert ours.convert_tokens_to_ids("[MASK]") == ours.mask_token_id == 103
    assert ours.convert_tokens_to_ids(["hello", "nonsense-word"]) == [7592, 100]
    assert ours.convert_ids_to_tokens(103) == "[MASK]"
    assert ours.convert_ids_to_tokens(10**6) is None
    assert (ours.max_len_single_sentence, ours.max_len_sentences_pair) == (510, 509)
    assert "BertTokenizer" in repr(ours)
    assert "vocab_size=30522" in repr(ours)


def test_special_tokens(fresh_bert: Any) -> None:
    tokenizer = fresh_bert
    assert tokenizer.eos_token is None
    assert tokenizer.eos_token_id is None
    tokenizer.eos_token = "[SEP]"
    assert tokenizer.eos_token_id == 102
    tokenizer.eos_token_id = 103
    assert tokenizer.eos_token == "[MASK]"
    tokenizer.eos_token = AddedToken("[unused1]", lstrip=True)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("[unused1]", 2)
    tokenizer.eos_token = None
    assert tokenizer.eos_token is None
    tokenizer.additional_special_tokens = ["[unused3]"]
    assert tokenizer.additional_special_tokens_ids == [4]
    assert tokenizer.special_tokens_map["additional_special_tokens"] == ["[unused3]"]
    assert tokenizer.all_special_tokens == ["[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]", "[unused3]"]
    assert tokenizer.add_special_tokens({"additional_special_tokens": ["<a>", "[unused3]"]}) == 2
    assert tokenizer.additional_special_tokens == ["<a>", "[unused3]"]
    assert tokenizer.add_special_tokens({"additional_special_tokens": ["<b>", "<a>"]}, False) == 1
    assert tokenizer.additional_special_tokens == ["<a>", "[unused3]", "<b>"]
    assert tokenizer.add_special_tokens({}) == 0
    assert tokenizer.decode(tokenizer.encode("x <a> y"), skip_special_tokens=True) == "x y"


def test_wrong_special_tokens(fresh_bert: Any) -> None:
    names = "Special tokens are named bos_token, eos_token, .*additional_special_tokens"
    with pytest.raises(InputError, match=f"{names}. Received: 'padding_token'"):
        fresh_bert.add_special_tokens({"pad_token": "[P]", "padding_token": "[P]"})
    assert fresh_bert.pad_token == "[PAD]", "nothing is changed by a call that fails"
    with pytest.raises(InputError, match="additional_special_tokens must be a list of tokens. Received: '<a>'"):
        fresh_bert.add_special_tokens({"additional_special_tokens": "<a>"})
    with pytest.raises(InputError, match="cls_token must be a string or AddedToken. Received: 5"):
        fresh_bert.add_special_tokens({"cls_token": 5})
    with pytest.raises(InputError, match="new_tokens must be strings or AddedToken. Received: 5"):
        fresh_bert.add_tokens(["a", 5])
    with pytest.raises(ConfigError, match="pad_token must be a string or AddedToken. Received: 5"):
        fresh_bert.pad_token = 5
    with pytest.raises(InputError, match="pad_token_id must be an id of the vocabulary. Received: 99999"):
        fresh_bert.pad_token_id = 99_999
    with pytest.raises(ConfigError, match="additional_special_tokens must be a list of tokens. Received: 'a'"):
        fresh_bert.additional_special_tokens = "a"


@pytest.mark.parametrize("name", ["bert_json", "longformer", "longt5", "llama"])
def test_layout_of_a_row(checkpoints: dict[str, Path], name: str) -> None:
    pair = make_pair(checkpoints, name)
    first, second = [7, 8, 9], [5]
    for args in ([first], [first, second], [[], []], [[]]):
        ids = pair.ours.build_inputs_with_special_tokens(*args)
        assert ids == pair.theirs.build_inputs_with_special_tokens(*args)
        if name != "llama":  # the reference's segments there count a separator that is not added
            segments = pair.ours.create_token_type_ids_from_sequences(*args)
            assert segments == pair.theirs.create_token_type_ids_from_sequences(*args)
        mask = pair.ours.get_special_tokens_mask(*args)
        assert len(mask) == len(ids)
        assert sum(mask) == pair.ours.num_special_tokens_to_add(len(args) == 2)
        whole = pair.ours.get_special_tokens_mask(ids, already_has_special_tokens=True)
        assert whole == pair.theirs.get_special_tokens_mask(ids, already_has_special_tokens=True)
    with pytest.raises(InputError, match="is given alone. Received: token_ids_1, too"):
        pair.ours.get_special_tokens_mask([1], [2], already_has_special_tokens=True)


def test_older_names(bert: Pair) -> None:
    pairs = [("a", "b c"), ("d", "e")]
    assert bert.ours.encode_plus("a", "b", max_length=8, padding="max_length").data == (
        bert.theirs.encode_plus("a", "b", max_length=8, padding="max_length").data
    )
    assert bert.ours.batch_encode_plus(pairs).data == bert.theirs.batch_encode_plus(pairs).data
    assert bert.ours.tokenize("a b", "c", add_special_tokens=True) == ["[CLS]", "a", "b", "[SEP]", "c", "[SEP]"]


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_pad_features(main_pair: Pair, data: st.DataObject) -> None:
    """`pad` of rows that are tokenized already, in every form, equals the reference's."""
    num_rows = data.draw(st.integers(1, 4))
    has_mask, has_types, has_special = (data.draw(st.booleans()) for _ in range(3))
    rows = []
    for _ in range(num_rows):
        length = data.draw(st.integers(1, 9))
        row: dict[str, Any] = {"input_ids": data.draw(st.lists(st.integers(0, 99), min_size=length, max_size=length))}
        row |= {"attention_mask": [1] * length} if has_mask else {}
        row |= {"token_type_ids": [1] * length} if has_types else {}
        row |= {"special_tokens_mask": [0] * length} if has_special else {}
        rows.append(row | {"label": length})
    kwargs = {
        "padding": data.draw(st.sampled_from([True, False, "longest", "max_length"])),
        "max_length": data.draw(st.sampled_from([6, 12])),
        "pad_to_multiple_of": data.draw(st.sampled_from([None, 4])),
        "padding_side": data.draw(st.sampled_from([None, "left", "right"])),
        "return_attention_mask": data.draw(st.sampled_from([None, True])),
        "verbose": False,
    }
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    for form in (rows, columns, tuple(rows), [BatchEncoding(row) for row in rows]):
        ours = main_pair.ours.pad(form, **kwargs)
        assert ours.data == main_pair.theirs.pad([dict(row) for row in rows], **kwargs).data
    one = {key: value for key, value in rows[0].items() if key != "label"}
    assert main_pair.ours.pad(one, **kwargs).data == main_pair.theirs.pad(dict(one), **kwargs).data
    if kwargs["padding"] is True:
        ours = main_pair.ours.pad(rows, return_tensors="np", **kwargs)
        theirs = main_pair.theirs.pad([dict(row) for row in rows], return_tensors="np", **kwargs)
        assert list(ours) == list(theirs)
        for key in ours:
            np.testing.assert_array_equal(ours[key], theirs[key])


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ([], "pad needs at least one row. Received: an empty list"),
        ("text", "pad takes what a call returned, .* Received: str"),
        ([[1, 2]], "Rows must be mappings of columns. Received: row 0 of type list"),
        ({"ids": [[1]]}, "pad needs the column 'input_ids'. Received: 'ids'"),
        ({}, "pad needs the column 'input_ids'. Received: no column"),
        (
            [{"input_ids": [1]}, {"input_ids": [1], "labels": 1}],
            "same columns. .*row 0, \\['input_ids', 'labels'\\] in row 1",
        ),
        ({"input_ids": [[1], [2]], "labels": [1]}, "same number of rows. Received: {'input_ids': 2, 'labels': 1}"),
    ],
)
def test_wrong_features(bert: Pair, features: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        bert.ours.pad(features)
