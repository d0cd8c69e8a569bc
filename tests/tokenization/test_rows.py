"""Rows made of ids, and conversations laid out by templates: equal to the reference."""

from __future__ import annotations

import itertools

import pytest
from tests.tokenization.conftest import load_reference
from tests.tokenization.corpus import TEXTS

from longspan import AutoTokenizer
from longspan.errors import ConfigError, InputError

FIRST, SECOND = list(range(20, 31)), list(range(40, 46))
KINDS = ("bert_vocab", "longformer", "longt5")
MESSAGES = [
    {"role": "system", "content": "Be <brief>."},
    {"role": "user", "content": "How tall is the tower?"},
    {"role": "assistant", "content": " 324 metres "},
]
TEMPLATES = [
    "{% for m in messages %}<|{{ m.role }}|>{{ m['content'] | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}",
    "{{ bos_token or '' }}{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}"
    "{{ m | tojson }}{% endfor %}",
    "{% set ns = namespace(n=0) %}\n  {% for m in messages %}\n{% set ns.n = ns.n + 1 %}\n"
    "{{ ns.n }}:{{ m.content }}{% endfor %}",
    "{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}{{ messages[-1].content }}{{ extra }}{{ eos_token }}",
]  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def pair(request, checkpoints):
    path = checkpoints[request.param]
    return AutoTokenizer.from_pretrained(path), load_reference(path)


def test_truncate_sequences(pair):
    ours, theirs = pair
    for side, count, stride in itertools.product(("left", "right"), (0, 1, 4, 5), (0, 2)):
        ours.truncation_side = theirs.truncation_side = side
        for second, strategy in ((None, "longest_first"), (SECOND, "longest_first"), (SECOND, "only_second"),
                                 (SECOND, "only_first"), (None, "do_not_truncate")):  # fmt: skip
            arguments = (FIRST, second, count, strategy, stride)
            assert ours.truncate_sequences(*arguments) == theirs.truncate_sequences(*arguments), (side, arguments)
    ours.truncation_side = theirs.truncation_side = "right"
    with pytest.raises(InputError, match="A sequence of 6 tokens cannot lose 7: take another"):
        ours.truncate_sequences(FIRST, SECOND, 7, "only_second")
    with pytest.raises(InputError, match="needs pair_ids"):
        ours.truncate_sequences(FIRST, None, 1, "only_second")


def test_prepare_for_model(pair):
    ours, theirs = pair
    for second, special, options in itertools.product(
        (None, SECOND),
        (True, False),
        (
            {},
            {"truncation": True, "max_length": 10},
            {"truncation": "only_first", "max_length": 12, "stride": 2, "return_overflowing_tokens": True},
            {"padding": "max_length", "max_length": 30, "return_length": True},
            {"padding": "max_length", "truncation": True, "max_length": 9, "return_token_type_ids": True},
            {"return_attention_mask": False, "return_tensors": "np", "prepend_batch_axis": True},
        ),
    ):
        if not special and "return_token_type_ids" in options:  # the reference has no segments without its layout
            continue
        mine = ours.prepare_for_model(FIRST, second, add_special_tokens=special, **options)
        expected = theirs.prepare_for_model(FIRST, second, add_special_tokens=special, **options)
        plain = {key: value.tolist() if hasattr(value, "tolist") else value for key, value in mine.items()}
        assert plain == {k: v.tolist() if hasattr(v, "tolist") else v for k, v in expected.items()}, options


def test_special_tokens_mask_of_a_prepared_row(checkpoints):
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["bert_vocab"])
    row = tokenizer.prepare_for_model(FIRST[:2], SECOND[:1], return_special_tokens_mask=True)
    assert row["special_tokens_mask"] == [1, 0, 0, 1, 0, 1]


@pytest.mark.parametrize("template", TEMPLATES)
def test_chat_templates(pair, template):
    ours, theirs = pair
    for options in ({}, {"add_generation_prompt": True}, {"tools": [{"name": "höhe"}], "extra": 7}):
        for text in (True, False):
            arguments = {"chat_template": template, "tokenize": not text, **options}
            expected = theirs.apply_chat_template(MESSAGES, **arguments)
            assert ours.apply_chat_template(MESSAGES, **arguments) == expected
            expected = theirs.apply_chat_template([MESSAGES, MESSAGES[:2]], **arguments)
            assert ours.apply_chat_template([MESSAGES, MESSAGES[:2]], **arguments) == expected
    arguments = {"chat_template": template, "tokenize": False, "continue_final_message": True}
    if "tojson }}{% endfor" not in template:
        expected = theirs.apply_chat_template(MESSAGES, **arguments)
        assert ours.apply_chat_template(MESSAGES, **arguments) == expected


@pytest.mark.parametrize(
    ("template", "error", "message"),
    [
        ("{{ ''.__class__.__mro__ }}", ConfigError, "SecurityError"),
        ("{{ messages.append(1) }}", ConfigError, "SecurityError"),
        ("{% for a in range(10**7) %}{% endfor %}", ConfigError, "at most 1000000 steps of range"),
        ("{% for a in range(2000) %}{% for b in range(2000) %}{% endfor %}{% endfor %}", ConfigError, "steps of range"),
        ("{{ 'a' * 10**9 }}", ConfigError, "may not compute str . int"),
        ("{{ 9**9**9**9 }}", ConfigError, "may not compute int .. int"),
        ("{{ '%1000000000d' % 1 }}", ConfigError, "may not compute str % int"),
        ("{{ raise_exception('roles must alternate') }}", InputError, "refuses the conversation: roles must alternate"),
        ("{% if %}", ConfigError, "TemplateSyntaxError"),
    ],
)
def test_templates_that_go_too_far(checkpoints, template, error, message):
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["bert_vocab"])
    with pytest.raises(error, match=message):
        tokenizer.apply_chat_template(MESSAGES, chat_template=template)


def test_templates_of_the_tokenizer(checkpoints):
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["bert_vocab"])
    with pytest.raises(InputError, match="needs a template: the tokenizer has none"):
        tokenizer.apply_chat_template(MESSAGES)
    tokenizer.chat_template = {"default": "D", "tool_use": "T"}
    assert tokenizer.apply_chat_template(MESSAGES, tokenize=False) == "D"
    assert tokenizer.apply_chat_template(MESSAGES, tools=[{}], tokenize=False) == "T"
    with pytest.raises(InputError, match="must be one of default, tool_use. Received: 'other'"):
        tokenizer.apply_chat_template(MESSAGES, chat_template="other")
    with pytest.raises(InputError, match="exclude each other"):
        tokenizer.apply_chat_template(MESSAGES, continue_final_message=True, add_generation_prompt=True)


@pytest.mark.parametrize("renamed", [False, True])
def test_a_new_vocabulary_of_the_same_kind(pair, renamed):
    ours, theirs = pair
    lines = [line for line in TEXTS.values() if line.strip()] * 3
    unknown = ours.unk_token
    options = {"vocab_size": 420, "new_special_tokens": ["<new>"]}
    if renamed:
        options["special_tokens_map"] = {unknown: "<other>"}
    mine = ours.train_new_from_iterator([lines], **options)
    expected = theirs.train_new_from_iterator([lines], show_progress=False, **options)
    mine_vocab, theirs_vocab = mine.get_vocab(), expected.get_vocab()
    if type(mine).__name__.startswith("Longformer"):
        assert mine_vocab == theirs_vocab
    # the library breaks ties among word pieces, and orders unigrams, by chance: the reference differs from itself
    assert len(mine) == len(expected)
    assert len(mine_vocab.keys() ^ theirs_vocab.keys()) < 0.1 * len(mine)
    assert mine.unk_token == ("<other>" if renamed else unknown)
    special = mine.all_special_tokens
    assert special == expected.all_special_tokens
    assert None not in mine.convert_tokens_to_ids(special)
    rows = [one.tokenize("a <new> b", "a", add_special_tokens=True) for one in (mine, expected)]
    assert "<new>" in rows[0]
    assert [[token for token in row if token in special] for row in rows] == [[t for t in rows[1] if t in special]] * 2
