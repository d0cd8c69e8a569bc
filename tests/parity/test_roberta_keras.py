"""Every Keras RoBERTa class against the PyTorch class on the same safetensors: outputs, losses, gradients, files."""

from __future__ import annotations

import filecmp

import numpy as np
import pytest
import torch
from tests.keras.setting import SETTINGS, attention_mask, import_keras, inputs_of
from tests.parity.keras_parity import compare_gradients, compare_outputs
from tests.parity.test_bert_keras import scalar
from tests.parity.torch_parity import randomise
from tests.tolerances import assert_close

import longspan
from longspan.errors import InputError
from longspan.ops.dispatch import recording

keras = import_keras()
#: class -> the class of BERT that has its labels
CLASSES = {
    "TFRobertaModel": "TFBertModel",
    "TFRobertaForMaskedLM": "TFBertForMaskedLM",
    "TFRobertaForCausalLM": "TFBertLMHeadModel",
    "TFRobertaForSequenceClassification": "TFBertForSequenceClassification",
    "TFRobertaForTokenClassification": "TFBertForTokenClassification",
    "TFRobertaForQuestionAnswering": "TFBertForQuestionAnswering",
    "TFRobertaForMultipleChoice": "TFBertForMultipleChoice",
}


def to_torch(inputs):
    return {key: torch.tensor(value) if isinstance(value, np.ndarray) else value for key, value in inputs.items()}


@pytest.mark.parametrize("name", CLASSES)
def test_outputs_losses_gradients_and_files_equal_pytorch(name, tmp_path):
    import tensorflow as tf

    config = longspan.RobertaConfig
    made = config(**{**SETTINGS, "num_hidden_layers": 1, "is_decoder": name.endswith("CausalLM")})
    theirs = randomise(getattr(longspan, name.removeprefix("TF"))(made))
    theirs.save_pretrained(tmp_path / "torch")
    ours = getattr(longspan, name).from_pretrained(tmp_path / "torch")
    assert type(ours.config) is config
    inputs = inputs_of(CLASSES[name])
    inputs["input_ids"] = np.where(inputs["attention_mask"] == 1, inputs["input_ids"], 1)  # padding has no position
    if name.endswith("SequenceClassification"):
        inputs["attention_mask"][1, 0] = 0  # read by the head all the same
    with tf.GradientTape() as tape, recording() as ran:
        output = ours(**inputs)
        loss = scalar(output, attention_mask().astype(np.float32), keras.ops)
    assert ran == ["eager" if "Causal" in name or "Answering" in name else "packed"]
    expected = theirs(**to_torch(inputs))
    compare_outputs(output, expected, keep=attention_mask())
    scalar(expected, torch.from_numpy(attention_mask()), torch).backward()
    compare_gradients(tape.gradient(loss, ours.trainable_weights), ours, theirs)
    ours.save_pretrained(tmp_path / "keras")
    assert filecmp.cmp(*(tmp_path / folder / "model.safetensors" for folder in ("torch", "keras")), shallow=False)
    auto = name.replace("TFRoberta", "TFAutoModel").replace("ModelModel", "Model")
    assert type(getattr(longspan, auto).from_pretrained(tmp_path / "keras")) is type(ours)


@pytest.mark.parametrize("name", ["TFRobertaModel", "TFRobertaForMultipleChoice", "TFRobertaForMaskedLM"])
def test_xlm_r_has_classes_of_its_own(name, tmp_path):
    settings = {**SETTINGS, "num_hidden_layers": 1}
    mine = name.replace("TF", "TFXLM")
    theirs = randomise(getattr(longspan, mine.removeprefix("TF"))(longspan.XLMRobertaConfig(**settings)))
    theirs.save_pretrained(tmp_path / "torch")
    ours = getattr(longspan, name.replace("TFRoberta", "TFAutoModel").replace("ModelModel", "Model"))
    ours = ours.from_pretrained(tmp_path / "torch")
    assert type(ours) is getattr(longspan, mine)
    assert isinstance(ours, getattr(longspan, name))
    inputs = inputs_of(CLASSES[name])
    compare_outputs(ours(**inputs), theirs(**to_torch(inputs)), keep=attention_mask())
    ours.save_pretrained(tmp_path / "keras")
    assert type(longspan.AutoModel.from_pretrained(tmp_path / "keras")) is longspan.XLMRobertaModel
    assert keras.saving.get_registered_object(keras.saving.get_registered_name(type(ours))) is type(ours)
    with pytest.raises(longspan.errors.ConfigError, match=f"{mine} needs a XLMRobertaConfig. Received: RobertaConfig"):
        type(ours)(longspan.RobertaConfig(**settings))


def test_cached_steps_equal_the_whole_and_embeddings_count_from_behind_padding(tmp_path):
    config = longspan.RobertaConfig(**{**SETTINGS, "num_hidden_layers": 1, "is_decoder": True})
    theirs = randomise(longspan.RobertaForCausalLM(config))
    theirs.save_pretrained(tmp_path)
    ours = longspan.TFRobertaForCausalLM.from_pretrained(tmp_path)
    ids = np.random.default_rng(0).integers(3, 97, (2, 9))
    whole = ours(ids).logits
    assert_close(whole, theirs(torch.from_numpy(ids)).logits)
    first = ours(ids[:, :5])
    rest = ours(ids[:, 5:], past_key_values=first.past_key_values)
    assert_close(np.concatenate([first.logits, rest.logits], axis=1), whole)
    embeds = np.random.default_rng(1).standard_normal((2, 7, 36)).astype(np.float32)
    expected = theirs(inputs_embeds=torch.from_numpy(embeds)).logits
    assert_close(ours(inputs_embeds=embeds).logits, expected)
    with pytest.raises(InputError, match="must not be longer than max_position_embeddings - pad_token_"):
        ours(np.full((1, 28), 5))
