"""Writes checkpoints with the reference's TensorFlow and Flax classes: `write_reference.py DIRECTORY CLASS …`.

For every class: random weights (norms and biases too), the framework's own file (in parts if the name has `Sharded`
behind it), `expected/model.safetensors` as the reference itself converts it to PyTorch, and `outputs.npz` with an input
and what the class makes of it.
"""

import os
import sys
from pathlib import Path

import numpy as np

TARGET = Path(sys.argv[1])
os.environ |= {"USE_TF": "AUTO", "USE_FLAX": "AUTO", "TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
os.environ |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}

import transformers as reference

SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
BERT = {"vocab_size": 50, "max_position_embeddings": 20, **SIZES}
LONGFORMER = reference.LongformerConfig(vocab_size=50, max_position_embeddings=40, attention_window=[4, 6], **SIZES)
LONGT5 = reference.LongT5Config(
    vocab_size=50,
    d_model=8,
    d_kv=4,
    d_ff=12,
    num_layers=2,
    num_heads=2,
    local_radius=3,
    encoder_attention_type="transient-global",
    feed_forward_proj="gated-gelu",
)
RNG = np.random.default_rng(11)


def bert_config(task=""):
    labels = {"ForSequenceClassification": 3, "ForTokenClassification": 5}.get(task, 2)
    is_decoder = task in ("LMHeadModel", "ForCausalLM")
    return reference.BertConfig(**BERT, num_labels=labels, is_decoder=is_decoder)


def random_like(array):
    return RNG.normal(scale=0.5, size=array.shape).astype(np.float32)


def inputs(name):
    shape = (2, 3, 7) if "MultipleChoice" in name else (2, 7)
    ids = RNG.integers(3, 50, size=shape)
    mask = np.ones(shape, np.int64)
    mask[0, ..., 5:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def finish(model, name, torch_name, convert, **arguments):
    """Save what the reference's PyTorch class and the model itself make of the weights."""
    directory = TARGET / name
    converted = getattr(reference, torch_name)(model.config)
    convert(converted)
    converted.save_pretrained(directory / "expected")
    if "LongT5" in name or "Longformer" in name:
        return
    batch = inputs(name)
    outputs = model(**batch, **arguments)
    np.savez(
        directory / "outputs.npz",
        **batch,
        **{f"out_{key}": np.asarray(value) for key, value in outputs.items() if hasattr(value, "shape")},
    )


def write_tf(name, torch_name, config, **arguments):
    from transformers.modeling_tf_pytorch_utils import load_tf2_model_in_pytorch_model

    model = getattr(reference, name)(config)
    model.build_in_name_scope()
    model.set_weights([random_like(weight) for weight in model.get_weights()])
    directory = TARGET / (name + "Sharded" * bool(arguments))
    model.save_pretrained(directory, safe_serialization=False, **arguments)
    finish(model, directory.name, torch_name, lambda torch_model: load_tf2_model_in_pytorch_model(torch_model, model))


def write_flax(name, torch_name, config, **arguments):
    import jax
    import jax.numpy as jnp
    from transformers.modeling_flax_pytorch_utils import load_flax_weights_in_pytorch_model

    clip = jnp.clip
    if "LongT5" in name:  # the reference knows only older JAX
        jnp.clip = lambda x, a_min=None, a_max=None: clip(x, a_min, a_max)
    shape = (1, 8) if "LongT5" in name else (1, 1)
    model = getattr(reference, name)(config, input_shape=shape, _do_init=False)
    params = jax.tree_util.tree_map(random_like, model.params_shape_tree)
    jnp.clip = clip
    directory = TARGET / (name + "Sharded" * bool(arguments))
    model.save_pretrained(directory, params=params, **arguments)
    finish(
        model,
        directory.name,
        torch_name,
        lambda torch_model: load_flax_weights_in_pytorch_model(torch_model, params),
        params=params,
    )


def write(name):
    sharded = {"max_shard_size": "3KB"} if name.endswith("Sharded") else {}
    name = name.removesuffix("Sharded")
    torch_name = name.removeprefix("TF").removeprefix("Flax").replace("ForCausalLM", "LMHeadModel")
    family = next(prefix for prefix in ("Bert", "Longformer", "LongT5") if torch_name.startswith(prefix))
    config = {"Longformer": LONGFORMER, "LongT5": LONGT5}.get(family) or bert_config(name.partition(family)[2])
    (write_tf if name.startswith("TF") else write_flax)(name, torch_name, config, **sharded)


if __name__ == "__main__":
    for name in sys.argv[2:]:
        write(name)
