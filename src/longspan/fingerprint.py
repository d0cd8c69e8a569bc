"""Comparing what a model makes of one input before and after its checkpoint was converted."""

from __future__ import annotations

import importlib.util
import inspect
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from longspan.checkpoints.files import open_checkpoint
from longspan.checkpoints.hub import Source
from longspan.configuration import CONFIG_NAME, read_json
from longspan.errors import CheckpointError, ConfigError, MissingFrameworkError
from longspan.models.registry import FAMILIES

Arrays = dict[str, npt.NDArray[Any]]

#: format -> (framework that wrote it, its module, beginning of class names)
_FRAMEWORKS = {"pytorch": ("PyTorch", "torch", ""), "flax": ("Flax", "flax", "Flax"), "tf": ("Keras", "keras", "TF")}
#: classes that frameworks name differently
_ALIASES = {"ForCausalLM": "LMHeadModel", "LMHeadModel": "ForCausalLM"}
#: largest difference, relative to the largest value; frameworks differ by 1e-6, a wrong tensor by 1
_TOLERANCE = 1e-4


def compare_outputs(source: Source, destination: Path, origin: str) -> str:
    """Run a model from both checkpoints on one random input: in the source's framework, and in PyTorch if it is there.

    Args:
        source: Where the weights came from.
        destination: Directory of the converted checkpoint.
        origin: Format of the source: "safetensors", "pytorch", "flax" or "tf".

    Returns:
        One line: what was compared, or why nothing could be.

    Raises:
        CheckpointError: if the outputs differ.
    """
    if origin not in _FRAMEWORKS:
        return "not compared: the source is safetensors, too"
    label, module, before = _FRAMEWORKS[origin]
    if importlib.util.find_spec(module) is None:
        return f"not compared: {label} is not installed"
    after = "" if importlib.util.find_spec("torch") is not None else before
    config_path = destination / CONFIG_NAME
    config = read_json(config_path) if config_path.is_file() else {}
    try:
        first, second = _find_class(config, before), _find_class(config, after)
        if first is None or second is None:
            return f"not compared: longspan has no {label} class for model_type={config.get('model_type')!r}"
        inputs = _make_inputs(config, second)
        with tempfile.TemporaryDirectory() as folder:
            _link_files(source, origin, config_path, Path(folder))
            expected = _run(first, Path(folder), inputs)
        received = _run(second, destination, inputs)
    except (ConfigError, MissingFrameworkError) as error:
        return f"not compared: {error}"
    return _describe(first, second, _differences(expected, received))


def _find_class(config: Mapping[str, Any], before: str) -> Any:
    """The class that the config names, in the framework whose class names begin with `before`; else the base model."""
    import longspan

    family = FAMILIES.get(str(config.get("model_type")))
    if family is None:
        return None
    suffixes = [
        str(name).removeprefix("TF").removeprefix("Flax").removeprefix(family.prefix)
        for name in config.get("architectures") or ()
    ]
    suffixes += [_ALIASES[suffix] for suffix in suffixes if suffix in _ALIASES]
    names = [f"{before}{family.prefix}{suffix}" for suffix in [*suffixes, "Model"]]
    return next((getattr(longspan, name) for name in names if name in dir(longspan)), None)


def _make_inputs(config: Mapping[str, Any], model_class: Any) -> Arrays:
    """Two rows of random ids; three choices each for multiple choice."""
    rng = np.random.default_rng(0)
    shape = (2, 3, 8) if "MultipleChoice" in model_class.__name__ else (2, 8)
    ids = rng.integers(0, config.get("vocab_size", 100), size=shape)
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    call = getattr(model_class, "forward", None) or model_class.__call__
    if "decoder_input_ids" in inspect.signature(call).parameters:
        inputs["decoder_input_ids"] = ids[:, :4]
    return inputs


def _link_files(source: Source, origin: str, config_path: Path, folder: Path) -> None:
    """Make a directory with the config and the weights of one format alone, so that a model loads just these."""
    (folder / CONFIG_NAME).symlink_to(config_path.resolve())
    with open_checkpoint(source, formats=[origin]) as reader:
        for path in reader.paths:
            (folder / path.name).symlink_to(path.resolve())


def _run(model_class: Any, directory: Path, inputs: Arrays) -> Arrays:
    """Load a model and give its outputs that are arrays."""
    model = model_class.from_pretrained(directory)
    if not hasattr(model, "forward") or model_class.__name__.startswith(("TF", "Flax")):
        outputs = model(**inputs)
        return {key: np.asarray(value) for key, value in outputs.items() if hasattr(value, "shape")}
    import torch

    with torch.no_grad():
        outputs = model.eval()(**{key: torch.from_numpy(value) for key, value in inputs.items()})
    return {key: value.float().numpy() for key, value in outputs.items() if isinstance(value, torch.Tensor)}


def _differences(expected: Arrays, received: Arrays) -> dict[str, float]:
    """Largest difference of each output, relative to its largest value."""
    return {
        key: float(np.max(np.abs(expected[key] - received[key])) / max(float(np.max(np.abs(expected[key]))), 1e-30))
        for key in expected
        if key in received
    }


def _describe(first: Any, second: Any, differences: Mapping[str, float]) -> str:
    listed = ", ".join(f"{key} {difference:.1e}" for key, difference in differences.items())
    compared = f"{first.__name__} on the source against {second.__name__} on the result: {listed}"
    if not differences or not all(difference <= _TOLERANCE for difference in differences.values()):
        raise CheckpointError(
            f"A converted model must give the outputs of its source, relative difference at most {_TOLERANCE}. "
            f"Received: {compared}"
        )
    return f"equal, {compared}"


def compare_frameworks(directory: Path) -> dict[str, dict[str, float] | str]:
    """Load a checkpoint in each installed framework and compare the outputs of one random input.

    Args:
        directory: The checkpoint.

    Returns:
        For each framework after the first that can run it, the largest difference of each output from the first's,
        relative to its largest value; for the first itself differences of 0; a reason where a framework cannot run it.

    Raises:
        CheckpointError: a framework does not load it.
    """
    config = read_json(directory / CONFIG_NAME)
    results: dict[str, dict[str, float] | str] = {}
    expected: Arrays | None = None
    for framework, before in (("torch", ""), ("flax", "Flax"), ("keras", "TF")):
        if importlib.util.find_spec(framework) is None:
            results[framework] = "not installed"
            continue
        model_class = _find_class(config, before)
        if model_class is None:
            results[framework] = f"no class for model_type={config.get('model_type')!r}"
            continue
        inputs = _make_inputs(config, model_class)
        received = _run(model_class, directory, inputs)
        expected = received if expected is None else expected
        results[framework] = _differences(expected, received)
    return results


def are_equal(results: Mapping[str, dict[str, float] | str]) -> bool:
    """True if all differences that `compare_frameworks` found are those of rounding."""
    listed = [found for found in results.values() if isinstance(found, dict)]
    values = [value for found in listed for value in found.values()]
    return bool(values) and all(value <= _TOLERANCE for value in values)
