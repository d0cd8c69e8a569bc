"""What the Keras tests share: importing TensorFlow, and tiny models with random weights."""

from __future__ import annotations

import json
import os
import warnings

import numpy as np
from tests.tolerances import assert_close

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
# by name: another test of the same process may have started TensorFlow, whose threads then cannot be changed
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

SETTINGS = {
    "vocab_size": 97,
    "hidden_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 50,
    "max_position_embeddings": 29,
    "type_vocab_size": 3,
    "num_labels": 5,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
CLASSES = (
    "TFBertModel",
    "TFBertForPreTraining",
    "TFBertLMHeadModel",
    "TFBertForMaskedLM",
    "TFBertForNextSentencePrediction",
    "TFBertForSequenceClassification",
    "TFBertForMultipleChoice",
    "TFBertForTokenClassification",
    "TFBertForQuestionAnswering",
)
#: they stand for the others where a test of all would take long
LONGFORMERS = ("TFLongformerForSequenceClassification", "TFLongformerForQuestionAnswering")
DIFFLLAMAS = (
    "TFDiffLlamaModel",
    "TFDiffLlamaForCausalLM",
    "TFDiffLlamaForSequenceClassification",
    "TFDiffLlamaForQuestionAnswering",
    "TFDiffLlamaForTokenClassification",
)
#: the same of MEGA
MEGAS = ("TFMegaForTokenClassification", "TFMegaForSequenceClassification", "TFMegaForMaskedLM")
MEGA_SETTINGS = {
    **{name: SETTINGS[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers", "type_vocab_size")},
    "num_labels": 5,
    "intermediate_size": 50,
    "nffn_hidden_size": 40,
    "ema_projection_size": 4,
    "shared_representation_size": 12,
    "add_token_type_embeddings": True,
    "normalization_type": "layernorm",
    "use_chunking": True,
    "chunk_size": 7,
    "dropout_prob": 0.0,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "nffn_activation_dropout_prob": 0.0,
}
#: stands for LongT5
LONGT5 = "TFLongT5ForConditionalGeneration"
LONGT5_SETTINGS = {
    **{name: SETTINGS[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers")},
    "d_kv": 9,
    "d_ff": 50,
    "num_attention_heads": 4,
    "local_radius": 3,
    "global_block_size": 4,
    "encoder_attention_type": "transient-global",
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "dropout_rate": 0.0,
}
#: rows of tokens: full, right-padded, with holes behind the first token and in the middle
ROWS, LENGTH = 4, 19


def import_keras():
    """Import TensorFlow and Keras; what third parties deprecate at their own import is not ours to fix."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import keras
        import tensorflow as tf
    # rewriting graphs takes a third of the time of making and running them; tests/keras/test_task.py has it done
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    return keras


def randomise(model, *, scale=0.2, seed=0):
    """Random asymmetric values for every weight, norms and biases included, so that swapped tensors cannot pass."""
    generator = np.random.default_rng(seed)
    for weight in model.weights:
        noise = generator.standard_normal(tuple(weight.shape)) * scale
        weight.assign(1 + noise if weight.path.endswith(("gamma", "norm/weight")) else noise)
    return model


def attention_mask():
    mask = np.ones((ROWS, LENGTH), np.int64)
    mask[1, 11:] = 0
    mask[2, 1:7] = 0  # pooled heads read the first token, so that one is real
    mask[3, 4:6] = 0
    return mask


def inputs_of(name, seed=1):
    """Inputs and labels of a class; labels at padding are ignored."""
    generator = np.random.default_rng(seed)
    shape = (2, 2, LENGTH) if name.endswith("MultipleChoice") else (ROWS, LENGTH)
    mask = attention_mask().reshape(shape)
    inputs = {
        "input_ids": generator.integers(0, 97, shape),
        "token_type_ids": generator.integers(0, 3, shape),
        "attention_mask": mask,
    }
    if name == LONGT5:
        del inputs["token_type_ids"]
        return inputs | {"decoder_input_ids": inputs["input_ids"][:, ::-3], "labels": inputs["input_ids"][:, ::3]}
    if "Longformer" in name:  # rows differ in their number of global tokens
        inputs["global_attention_mask"] = mask * (np.arange(ROWS * LENGTH).reshape(shape) % 23 == 0)
    if "DiffLlama" in name:
        del inputs["token_type_ids"]
    return inputs | labels_of(name, inputs, generator)


def labels_of(name, inputs, generator):
    mask = inputs["attention_mask"]
    per_token = np.where(mask == 1, generator.integers(0, 5, mask.shape), -100)
    after_real = np.concatenate([np.zeros_like(mask[:, :1]), mask[:, :-1]], axis=1)
    labels = {
        "TFBertForMaskedLM": {"labels": per_token},
        "TFBertLMHeadModel": {"labels": np.where(mask * after_real == 1, inputs["input_ids"], -100)},
        "TFBertForPreTraining": {"labels": per_token, "next_sentence_label": np.array([0, 1, 1, 0])},
        "TFBertForTokenClassification": {"labels": per_token},
        "TFBertForNextSentencePrediction": {"next_sentence_label": np.array([0, 1, 1, 0])},
        "TFBertForSequenceClassification": {"labels": np.array([4, 0, 2, 2])},
        "TFBertForMultipleChoice": {"labels": np.array([1, 0])},
        "TFBertForQuestionAnswering": {  # 99 lies outside and does not count
            "start_positions": np.array([3, 0, 99, 8]),
            "end_positions": np.array([5, 2, 99, 18]),
        },
    }
    for family in ("DiffLlama", "Mega"):
        name = name.replace(f"{family}ForCausalLM", "BertLMHeadModel").replace(family, "Bert")
    return labels.get(name.replace("Longformer", "Bert"), {})


def config_for(name, **settings):
    from longspan import BertConfig, DiffLlamaConfig, LongformerConfig, LongT5Config, MegaConfig

    if name == LONGT5:
        settings["d_ff"] = settings.pop("intermediate_size", 50)
        return LongT5Config(**{**LONGT5_SETTINGS, **settings})
    if "Mega" in name:
        decoder = name == "TFMegaForCausalLM"
        return MegaConfig(**{**MEGA_SETTINGS, "is_decoder": decoder, "bidirectional": not decoder, **settings})
    if "Longformer" in name:
        return LongformerConfig(**{**SETTINGS, "attention_window": 4, **settings})
    if "DiffLlama" in name:
        own = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "hidden_dropout": 0.0}
        shared = ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "num_labels")
        return DiffLlamaConfig(**{**{key: SETTINGS[key] for key in shared}, **own, **settings})
    return BertConfig(**{**SETTINGS, "is_decoder": name == "TFBertLMHeadModel", **settings})


def make(name, *, dtype=None, **settings):
    """A model of a class with random weights."""
    import longspan

    return randomise(getattr(longspan, name)(config_for(name, **settings), dtype=dtype))


def assert_made_again(keras, model):
    """Keras' own configuration of a model, as JSON, makes one with the same settings, policy and weights' names."""
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(model)))
    again = keras.saving.deserialize_keras_object(config)
    assert (type(again), again.config, again.dtype_policy) == (type(model), model.config, model.dtype_policy)
    assert [weight.path for weight in again.weights] == [weight.path for weight in model.weights]


def assert_saved_serves(keras, model, inputs, *, lengths, field, folder):
    """A `.keras` file and a SavedModel give what the model gives, at every length."""
    import tensorflow as tf

    model.save(folder / "model.keras")
    again = keras.models.load_model(folder / "model.keras")
    model.export(folder / "served")
    served = tf.saved_model.load(str(folder / "served"))
    for length in lengths:
        part = {key: value[:3, :length] for key, value in inputs.items()}
        expected = model(part)[field]
        assert_close(again(part)[field], expected)
        assert_close(served.serve(part)[field], expected)
