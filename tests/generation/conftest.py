"""Pairs of generating models, the reference's and ours, on equal random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from tests.parity.torch_parity import randomise

import longspan

TRAINED = Path(__file__).parent / "trained"
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LONGT5 = {
    "vocab_size": 97,
    "d_model": 36,
    "d_kv": 10,
    "d_ff": 50,
    "num_layers": 2,
    "num_heads": 3,
    "local_radius": 4,
    "global_block_size": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 11,
    "decoder_start_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES = {
    "diffllama": (
        "DiffLlamaForCausalLM",
        transformers.DiffLlamaConfig,
        {
            "vocab_size": 97,
            "hidden_size": 32,
            "intermediate_size": 50,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            **IDS,
        },
    ),
    "bert": (
        "BertLMHeadModel",
        transformers.BertConfig,
        {
            "vocab_size": 97,
            "hidden_size": 32,
            "intermediate_size": 50,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "is_decoder": True,
            **IDS,
        },
    ),
    "longt5-local": (
        "LongT5ForConditionalGeneration",
        transformers.LongT5Config,
        {**LONGT5, "encoder_attention_type": "local"},
    ),
    "longt5-tglobal": (
        "LongT5ForConditionalGeneration",
        transformers.LongT5Config,
        {**LONGT5, "encoder_attention_type": "transient-global"},
    ),
}
#: a small decoder
MEGA = {
    "vocab_size": 97,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "intermediate_size": 40,
    "shared_representation_size": 16,
    "ema_projection_size": 4,
    "is_decoder": True,
    "bidirectional": False,
    "use_chunking": True,
    "chunk_size": 5,
    **IDS,
}
#: those that the reference cannot generate with: a trained one is compared among the frameworks
OURS_ALONE = {
    "mega": (
        "MegaForCausalLM",
        longspan.MegaConfig,
        {
            "vocab_size": 97,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "intermediate_size": 50,
            "shared_representation_size": 16,
            "nffn_hidden_size": 50,
            "ema_projection_size": 4,
            "is_decoder": True,
            "bidirectional": False,
            "use_chunking": True,
            "chunk_size": 5,
            "dropout_prob": 0.0,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "nffn_activation_dropout_prob": 0.0,
            "initializer_range": 0.1,
            **IDS,
        },
    ),
}
#: of the random weights; attention scores of LongT5 are not scaled
SCALE = {"diffllama": 0.2, "bert": 0.2, "longt5-local": 0.1, "longt5-tglobal": 0.1}


def make_pair(directory, family, **settings):
    """(our model, the reference's) on equal weights."""
    name, config, defaults = FAMILIES[family]
    reference = randomise(getattr(transformers, name)(config(**{**defaults, **settings})), scale=SCALE[family])
    reference.save_pretrained(directory)
    return getattr(longspan, name).from_pretrained(directory), reference


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """Family -> (our model, the reference's)."""
    return {family: make_pair(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


@pytest.fixture(scope="session")
def trained():
    """Family -> (our model, the reference's), with weights that learned to count on; `train_to_count.py` makes them."""
    return {family: load_trained(family) for family in FAMILIES}


def load_trained(family):
    """(our model, the reference's) from the shipped weights, in float32."""
    name, directory = FAMILIES[family][0], TRAINED / family
    models = [getattr(library, name).from_pretrained(directory) for library in (longspan, transformers)]
    return tuple(model.float().eval() for model in models)


@pytest.fixture(scope="session")
def tiny(pairs):
    """Our smallest causal model."""
    return pairs["diffllama"][0]


@pytest.fixture(scope="session")
def mega():
    """A function that gives a MEGA decoder with random weights."""

    def make(**settings):
        config = longspan.MegaConfig(**{**MEGA, "vocab_size": 61, **settings})
        return randomise(longspan.MegaForCausalLM(config), scale=0.4)

    return make


def prompts(batch, length=9, *, left, vocabulary=97):
    """Random prompts (B, L) and their masks: rows 1, 4, 7, ... are 3 shorter, rows 2, 5, ... are `length` - 2."""
    generator = torch.Generator().manual_seed(batch)
    ids = torch.randint(3, vocabulary, (batch, length), generator=generator)
    gaps = torch.tensor([(0, 3, length - 2)[row % 3] for row in range(batch)])[:, None]
    mask = torch.arange(length) >= gaps
    mask = mask if left else mask.flip(1)
    return ids.masked_fill(~mask, 0), mask.long()


def counting_rows(batch, generator):
    """Rows that begin anywhere and count on, (batch, 8), ids 3 to 49."""
    return torch.randint(3, 40, (batch, 1), generator=generator) + torch.arange(8)


def counting_prompts(batch, *, left):
    """Rows that count, some of them shorter, and their masks."""
    ids = counting_rows(batch, torch.Generator().manual_seed(batch))
    gaps = (torch.arange(batch) % 3)[:, None]
    mask = torch.arange(8) >= gaps if left else torch.arange(8) < 8 - gaps
    return ids.masked_fill(~mask, 0), mask.long()
