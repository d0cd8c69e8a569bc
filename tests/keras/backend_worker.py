"""Runs models on the Keras backend that the environment names: `backend_worker.py DIRECTORY`.

Loads each of `checkpoints/`, computes what its `inputs.npz` asks for, trains one step, and writes `<backend>.npz`; and
the number of programs that serve many lengths, `<backend>.txt`.
"""

import sys
from pathlib import Path
from typing import Any
from unittest import mock

import keras
import numpy as np

import longspan
from longspan import shapes
from longspan.checkpoints.keras import leaves
from longspan.models.mega import keras_layers
from longspan.nn.keras.runtime import compile_program
from longspan.ops.keras import differential

TRAINED = (
    "TFBertForPreTraining",
    "TFBertForTokenClassification",
    "TFLongformerForTokenClassification",
    "TFDiffLlamaForTokenClassification",
    "TFMegaForTokenClassification",
    "TFLongT5ForConditionalGeneration",
)
ATTENTION = "TransientGlobalSelfAttention"
#: weights that are compared after a step
KEYS = {
    "Bert": ("embeddings.word_embeddings.weight", "encoder.layer.0.attention.self.query.weight"),
    "DiffLlama": ("embed_tokens.weight", "layers.0.self_attn.k_proj.weight", "layers.0.self_attn.lambda_q1"),
    "LongT5": ("shared.weight", f"encoder.block.0.layer.0.{ATTENTION}.global_relative_attention_bias.weight"),
    "Mega": ("embedding_layer.word_embeddings.weight", "layers.0.mega_layer.ema_gate.damping_factor"),
}


def run_many_lengths(directory: Path) -> tuple[list[float], int]:
    """What a pipeline answers in texts of 20 lengths and to a long question, and the number of its programs."""
    run = longspan.pipeline("question-answering", directory / "answers", framework="keras", batch_size=1)
    texts = [{"question": "Who", "context": "a word " * (number + 1)} for number in range(20)]
    scores = [answer["score"] for answer in run(texts, top_k=1)]
    programs = run.model.num_programs
    return [*scores, run({**texts[2], "question": "Who is it that wrote all of this"}, top_k=1)["score"]], programs


def in_spans(model: Any, ids: np.ndarray) -> np.ndarray:
    """Scores by one compiled program whose layers read a chunk at a time, and by calls of layers with all tokens."""
    chunk, block = model.config.chunk_size, keras_layers.MegaBlock
    spans = mock.patch.object(block, "_in_spans", autospec=True, side_effect=block._in_spans)
    with (
        spans as seen,
        mock.patch.object(shapes, "TOKEN_BLOCK_BYTES", 1),
        mock.patch.object(keras_layers, "BLOCK_SIZE", chunk),
    ):
        scores = compile_program(model, lambda ids: model(ids).logits)(keras.ops.convert_to_tensor(ids, "int32"))
    assert seen.called == (keras.backend.backend() != "torch")
    with longspan.plain():
        whole = model(ids).logits
    return np.stack([keras.ops.convert_to_numpy(each) for each in (scores, whole)])


def main(directory: Path) -> None:
    """Run everything; short inputs take several blocks of rows."""
    with mock.patch.object(differential, "BLOCK_ROWS", 8):
        run_all(directory)


def run_all(directory: Path) -> None:
    backend = keras.backend.backend()
    results = {}
    for folder in sorted((directory / "checkpoints").iterdir()):
        model = getattr(longspan, folder.name).from_pretrained(folder)
        inputs = dict(np.load(folder / "inputs.npz"))
        output = model(**inputs, output_hidden_states=True, output_attentions=True)
        for name, value in output.items():
            parts = [value] if not isinstance(value, tuple) else list(value) if name != "past_key_values" else []
            for index, part in enumerate(parts):
                results[f"{folder.name}/{name}/{index}"] = keras.ops.convert_to_numpy(part)
        if folder.name.endswith("ForTokenClassification"):
            model.save_pretrained(directory / backend / folder.name)
            model.save(directory / f"{backend}.keras")
            again = keras.models.load_model(directory / f"{backend}.keras")
            symbolic = again.get_base_model()(keras.Input((None,), dtype="int32")).last_hidden_state
            assert tuple(symbolic.shape) == (None, None, 36), symbolic.shape
            prediction = again.predict({"input_ids": inputs["input_ids"]}, verbose=0)
            results[f"{folder.name}/predict"] = np.asarray(prediction.logits)
        if "Mega" in folder.name:
            results["spans"] = in_spans(model, inputs["input_ids"])
        if hasattr(model, "generate"):
            written = model.generate(inputs["input_ids"][:, :7], max_new_tokens=6, num_beams=2, pad_token_id=0)
            results[f"{folder.name}/written"] = keras.ops.convert_to_numpy(written)
        if folder.name in TRAINED:
            model.compile(keras.optimizers.SGD(0.1))
            results[f"{folder.name}/fit"] = model.fit(inputs, batch_size=4, verbose=0).history["loss"][0]
            for key in KEYS[next((family for family in KEYS if family in folder.name), "Bert")]:
                results[f"{folder.name}/{key}"] = leaves(model)[f"{model.base_model_prefix}.{key}".lstrip(".")].read()
    results["lengths"], programs = run_many_lengths(directory)
    np.savez(directory / f"{backend}.npz", **results)
    (directory / f"{backend}.txt").write_text(str(programs))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
