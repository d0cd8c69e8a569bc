"""Random valid settings and inputs of the encoders and decoders, ours against the reference.

`LONGSPAN_HARDENING=long` takes 2,000 examples rather than 40. A failure that hypothesis shrinks becomes a test.
"""

from __future__ import annotations

import tempfile

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.hardening.conftest import IS_LONG
from tests.parity.torch_parity import randomise
from tests.tolerances import assert_close

import longspan

EXAMPLES = 400 if IS_LONG else 8  # of each of five families


def sized(**more):
    """Sizes that all families of plain attention share, heads of 4 or 6 features."""

    def build(heads, size, layers, values):
        return {
            "vocab_size": 53,
            "num_attention_heads": heads,
            "hidden_size": heads * size,
            "num_hidden_layers": layers,
            "max_position_embeddings": 80,
            **values,
        }

    return st.builds(
        build, st.sampled_from([2, 4]), st.sampled_from([4, 6]), st.integers(1, 2), st.fixed_dictionaries(more)
    )


CONFIGS = {
    "bert": sized(
        intermediate_size=st.integers(5, 40),
        hidden_act=st.sampled_from(["gelu", "relu", "gelu_new", "silu"]),
        position_embedding_type=st.sampled_from(["absolute", "relative_key", "relative_key_query"]),
        is_decoder=st.booleans(),
        layer_norm_eps=st.sampled_from([1e-12, 1e-5, 1e-2]),
    ),
    "longformer": sized(
        intermediate_size=st.integers(5, 40),
        hidden_act=st.sampled_from(["gelu", "relu", "gelu_new"]),
        attention_window=st.sampled_from([4, 8]),  # the reference crashes at 2
    ),
    "longt5": st.fixed_dictionaries(
        {
            "vocab_size": st.just(53),
            "d_model": st.integers(6, 24),
            "d_kv": st.integers(2, 9),
            "d_ff": st.integers(5, 40),
            "num_layers": st.integers(1, 2),
            "num_heads": st.integers(1, 4),
            "local_radius": st.integers(2, 6),
            "global_block_size": st.integers(2, 6),
            "relative_attention_num_buckets": st.sampled_from([4, 8, 16]),
            "relative_attention_max_distance": st.integers(12, 40),
            "encoder_attention_type": st.sampled_from(["local", "transient-global"]),
            "feed_forward_proj": st.sampled_from(["relu", "gated-gelu", "gated-silu"]),
        }
    ),
    "diffllama": sized(
        intermediate_size=st.integers(5, 40),
        num_key_value_heads=st.just(2),
        rope_theta=st.sampled_from([100.0, 10000.0]),
        attention_bias=st.booleans(),
        hidden_act=st.sampled_from(["silu", "gelu"]),
    ),
    "mega": st.fixed_dictionaries(
        {
            "vocab_size": st.just(53),
            "hidden_size": st.sampled_from([8, 12, 20]),
            "num_hidden_layers": st.integers(1, 2),
            "intermediate_size": st.integers(5, 40),
            "ema_projection_size": st.integers(1, 5),
            "shared_representation_size": st.sampled_from([4, 8, 10]),
            "nffn_hidden_size": st.integers(5, 40),
            "normalize_before_mega": st.booleans(),
            "normalization_type": st.sampled_from(["scalenorm", "layernorm"]),
            "attention_activation": st.sampled_from(["softmax", "laplace", "relu2"]),
            "relative_positional_bias": st.sampled_from(["rotary", "simple"]),
            "max_positions": st.just(80),
        }
    ),
}
MODELS = {
    "bert": ("BertModel", "BertConfig"),
    "longformer": ("LongformerModel", "LongformerConfig"),
    "longt5": ("LongT5EncoderModel", "LongT5Config"),
    "diffllama": ("DiffLlamaModel", "DiffLlamaConfig"),
    "mega": ("MegaModel", "MegaConfig"),
}


def reference_class(name):
    """Of transformers; MEGA's are deprecated there."""
    from transformers.models.deprecated import mega

    return getattr(mega, name) if name.startswith("Mega") else getattr(transformers, name)


@st.composite
def batches(draw):
    """Ids (B, S) and a mask that keeps the beginning of each row."""
    rows, length = draw(st.integers(1, 3)), draw(st.integers(1, 40))
    real = [length, *(draw(st.integers(1, length)) for _ in range(rows - 1))]
    ids = torch.randint(3, 53, (rows, length), generator=torch.Generator().manual_seed(draw(st.integers(0, 9))))
    return ids, (torch.arange(length) < torch.tensor(real)[:, None]).long()


@pytest.mark.parametrize("family", CONFIGS)
def test_random_settings_equal_the_reference(family, figures):
    name, config_name = MODELS[family]
    model_class, config_class = reference_class(name), reference_class(config_name)
    # with a cache, the reference takes the last key's position for every query: see docs/differences.md
    options = {"use_cache": False} if family == "bert" else {}

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(CONFIGS[family], batches(), st.integers(0, 99))
    def check(values, batch, seed):
        figures["cases"] = figures.get("cases", 0) + 1
        reference = randomise(model_class(config_class(**values)), scale=0.2, seed=seed)
        with tempfile.TemporaryDirectory() as directory:
            reference.save_pretrained(directory)
            ours = getattr(longspan, name).from_pretrained(directory)
        ids, mask = batch
        with torch.no_grad():
            mine, theirs = (model(ids, attention_mask=mask, **options)[0] for model in (ours, reference))
        keep = mask.bool()
        assert_close(mine[keep], theirs[keep], what=f"{values}, {tuple(ids.shape)}")
        figures["held"] = figures.get("held", 0) + 1

    check()
