"""BERTs of the reference in other runtimes, as functions of ids, mask and types (B, S) that give states (B, S, H)."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

INPUTS = ("input_ids", "attention_mask", "token_type_ids")

States = Callable[[dict[str, Any]], Any]


def temporary_folder() -> Path:
    """A folder that lives as long as the process."""
    folder = Path(tempfile.mkdtemp(prefix="longspan-bench-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def onnx_file(folder: Path, model: Any) -> Path:
    """A BERT as ONNX, (B, S) free, with the fusions of ONNX Runtime's optimiser for transformers."""
    import torch
    from onnxruntime.transformers.optimizer import optimize_model

    path, axes = folder / "model.onnx", {0: "batch", 1: "tokens"}
    example = torch.ones(2, 5, dtype=torch.long)
    torch.onnx.export(
        model, (example,) * 3, str(path), input_names=list(INPUTS), output_names=["states"],
        dynamic_axes=dict.fromkeys([*INPUTS, "states"], axes), dynamo=False,
    )  # fmt: skip
    config = model.config
    optimized = optimize_model(str(path), "bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size)
    optimized.save_model_to_file(str(path))
    return path


def onnxruntime_states(path: Path) -> States:
    """Runs a file."""
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda batch: session.run(None, batch)[0]


def openvino_states(model: Any, precision: str, calibration: list[dict[str, Any]] | None = None) -> States:
    """OpenVINO with products of a precision; in 8 bits, weights and activations, given inputs to calibrate with."""
    import openvino
    import torch

    example = dict.fromkeys(INPUTS, torch.ones(2, 5, dtype=torch.long))
    converted = openvino.convert_model(model, example_input=example)
    if calibration is not None:
        import nncf

        converted = nncf.quantize(
            converted, nncf.Dataset(calibration), model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(calibration),
        )  # fmt: skip
    hints = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    hints["INFERENCE_NUM_THREADS"] = str(torch.get_num_threads())
    compiled = openvino.compile_model(converted, "CPU", hints)
    return lambda batch: compiled(batch)[0]


def ctranslate2_states(model_folder: Path, compute_type: str) -> States:
    """CTranslate2's encoder of a BERT in a folder of the reference's."""
    import ctranslate2
    import numpy as np
    import torch

    folder = temporary_folder()
    ctranslate2.converters.TransformersConverter(str(model_folder)).convert(str(folder), force=True)
    encoder = ctranslate2.Encoder(str(folder), compute_type=compute_type, intra_threads=torch.get_num_threads())

    def states(batch: dict[str, Any]) -> Any:
        lengths = batch["attention_mask"].sum(1)
        ids = [row[:length].tolist() for row, length in zip(batch["input_ids"], lengths, strict=True)]
        return np.array(encoder.forward_batch(ids).last_hidden_state)

    return states
