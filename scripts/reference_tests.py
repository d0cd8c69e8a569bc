"""Run the reference's own model tests with longspan's classes in the place of its own.

    pip download --no-deps --no-binary :all: transformers==4.57.6  # its folder `tests`: PyTorch
    pip download --no-deps --no-binary :all: transformers==4.52.4  # the last with tests of Flax and TensorFlow
    python scripts/reference_tests.py torch DIRECTORY [--only bert longt5]
    python scripts/reference_tests.py flax DIRECTORY
    python scripts/reference_tests.py keras DIRECTORY

`DIRECTORY` holds the reference's `test_modeling_common.py` (`test_modeling_flax_common.py`,
`test_modeling_tf_common.py`), of which nothing is part of longspan. They need `parameterized` and `datasets`.
What the tests ask of a family, a small configuration and a batch, is written here. Of an error its class is compared,
not its words. Counted are the tests that the installed reference passes, slow ones included; and by themselves, as
`alone`, those that it cannot pass: classes that it lacks in a framework, or that fail with the JAX and Keras of today.
`benchmarks/results/reference_tests.json` gets the numbers and what failed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import types
import unittest
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "reference_tests.json"
#: framework -> tests of how the reference is built inside, not of what a user calls
PRIVATE = {
    "torch": {
        "test_sdpa_can_dispatch_non_composite_models": "the implementation that `_attn_implementation` shows",
        "test_load_with_mismatched_shapes": "a line in the log of the reference's own module",
        "test_can_load_ignoring_mismatched_shapes": "a line in the log of the reference's own module",
        "test_generation_tester_mixin_inheritance": "how the reference's tests are put together",
        "test_can_init_all_missing_weights": "the year in the reference's own file, and a method of its base class",
    },
    "flax": {
        "test_load_with_mismatched_shapes": "a line in the log of the reference's own module",
    },
    "keras": {
        "test_load_with_mismatched_shapes": "a line in the log of the reference's own module",
        "test_resize_token_embeddings": "`value()` of Keras 2's variables, which Keras 3's are not",
        "test_compile_tf_model": "saves a functional model into a folder, which Keras 3 refuses whatever the model",
    },
}
#: tests that want what longspan does otherwise on purpose (docs/differences.md)
DIFFERENT = {
    "test_model_weights_reload_no_missing_tied_weights": "loads files without weights: missing keys raise",
    "test_eager_matches_sdpa_inference_24_fp32_pad_left_output_attentions": "what a name cannot serve raises",
    "test_cannot_load_with_meta_device_context_manager": "wants an error: loading works there",
    "test_save_load_in_fp16": "of Flax: parameters are float32 unless asked otherwise",
    "test_save_load_in_bf16": "of Flax: parameters are float32 unless asked otherwise",
    "test_from_pretrained_with_no_automatic_init": "of Flax: loads a file that lacks a parameter: missing keys raise",
}
#: tests that read repositories of the hub
ONLINE = {"test_checkpoint_sharding_from_hub", "test_checkpoint_sharding_local"}
SECONDS = 300  # of one test

COMMON: dict[str, Any] = {"vocab_size": 99, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}
LAYERS = {**COMMON, "intermediate_size": 37, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
HEADS = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
STAND_INS = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForConditionalGeneration")
#: of each family: settings, suffixes of classes, attributes of the test, attributes of the tester
FAMILIES: dict[str, tuple[dict[str, Any], tuple[str, ...], dict[str, Any], dict[str, Any]]] = {
    "Bert": (
        {**LAYERS, "max_position_embeddings": 64},
        (*HEADS, "LMHeadModel", "ForNextSentencePrediction", "ForMultipleChoice"),
        {},
        {},
    ),
    "Roberta": (
        {**LAYERS, "max_position_embeddings": 64, "pad_token_id": 1},
        (*HEADS, "ForCausalLM", "ForMultipleChoice"),
        {},
        {},
    ),
    "Longformer": (
        {**LAYERS, "max_position_embeddings": 64, "attention_window": 4},
        (*HEADS, "ForMultipleChoice"),
        {"test_pruning": False, "test_torchscript": False},
        {"key_length": 6},
    ),
    "LongT5": (
        {
            "vocab_size": 99, "num_layers": 2, "num_heads": 4, "d_model": 32, "d_kv": 8, "d_ff": 37, "local_radius": 5,
            "decoder_start_token_id": 0, "relative_attention_num_buckets": 8,
        },
        ("Model", "ForConditionalGeneration"),
        {"test_pruning": False, "is_encoder_decoder": True},
        {},
    ),
    "DiffLlama": (
        {**COMMON, "intermediate_size": 37, "pad_token_id": 0},
        ("Model", "ForCausalLM", "ForSequenceClassification", "ForQuestionAnswering", "ForTokenClassification"),
        {"test_pruning": False, "test_head_masking": False},
        {},
    ),
    "Mega": (
        {
            "vocab_size": 99, "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 37,
            "shared_representation_size": 32, "ema_projection_size": 8, "max_positions": 64, "use_chunking": False,
        },
        HEADS,
        {"test_pruning": False, "test_head_masking": False, "test_resize_embeddings": False},
        {},
    ),
}  # fmt: skip


FAMILIES["XLMRoberta"] = FAMILIES["Roberta"]
#: frameworks in which the reference has a family
HAS_REFERENCE = {
    "Bert": ("torch", "flax", "keras"),
    "Roberta": ("torch", "flax", "keras"),
    "XLMRoberta": ("torch", "flax", "keras"),
    "Longformer": ("torch", "keras"),
    "LongT5": ("torch", "flax"),
    "DiffLlama": ("torch",),
    "Mega": ("torch",),
}
#: framework -> beginning of its classes' names, file of the reference's tests, class in it
FRAMEWORKS = {
    "torch": ("", "test_modeling_common", "ModelTesterMixin"),
    "flax": ("Flax", "test_modeling_flax_common", "FlaxModelTesterMixin"),
    "keras": ("TF", "test_modeling_tf_common", "TFModelTesterMixin"),
}
#: variables by which the reference does without a framework, of which it always needs PyTorch
SWITCHES = {"flax": "USE_FLAX", "keras": "USE_TF"}
#: compiling is most of what the tests of Flax do: without LLVM's optimisations, and a program once for all models
QUICK_COMPILING = {
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


class Tester:
    """What the reference's mixin asks about a family: sizes, a configuration and a batch."""

    batch_size, seq_length, num_choices, is_training = 13, 8, 4, True
    num_hidden_layers, num_attention_heads, hidden_size = 2, 4, 32

    def __init__(
        self, framework: str, config_class: type, settings: dict[str, Any], attributes: dict[str, Any]
    ) -> None:
        self.framework, self.config_class, self.settings = framework, config_class, settings
        self.encoder_seq_length = self.decoder_seq_length = self.key_length = self.seq_length
        self.__dict__.update(attributes)

    def get_config(self) -> Any:
        """A small configuration."""
        return self.config_class(**self.settings)

    def tensor(self, array: Any) -> Any:
        """An array as the framework's tensors."""
        if self.framework == "torch":
            import torch

            return torch.from_numpy(array)
        if self.framework == "flax":
            return array.astype(np.int32)
        import tensorflow as tf

        return tf.constant(array, tf.int32)

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, Any]]:
        """A configuration and a batch without labels."""
        config = self.get_config()
        ids = np.random.default_rng(0).integers(3, config.vocab_size, (self.batch_size, self.seq_length))
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        if hasattr(config, "attention_window"):  # one global token, which `key_length` counts
            inputs["global_attention_mask"] = np.zeros_like(ids)
            inputs["global_attention_mask"][:, -1] = 1
        if config.is_encoder_decoder:
            inputs |= {"decoder_input_ids": ids[:, ::-1].copy(), "decoder_attention_mask": np.ones_like(ids)}
        return config, {key: self.tensor(array) for key, array in inputs.items()}


def load_module(framework: str, directory: Path) -> Any:
    """The file of the reference's tests, whose package is made of its folder."""
    from transformers import testing_utils

    for name in ("require_flax", "require_tf", "require_tf2onnx"):  # gone from releases after the tests'
        vars(testing_utils).setdefault(name, lambda tests: tests)
    package = types.ModuleType("reference_tests")
    package.__path__ = [str(directory)]
    sys.modules["reference_tests"] = package
    if not (directory / "generation").is_dir():  # the source distribution has the common tests only
        for name in ("generation", "generation.test_utils"):
            module = types.ModuleType(f"reference_tests.{name}")
            module.__path__ = []
            vars(module)["GenerationTesterMixin"] = type("GenerationTesterMixin", (), {})
            sys.modules[module.__name__] = module
    return importlib.import_module(f"reference_tests.{FRAMEWORKS[framework][1]}")


def put_ours_in(module: Any) -> None:
    """Let what a file of tests imported by name be longspan's: Auto classes, tables, outputs, Keras itself."""
    import longspan

    values = module.get_values

    def get_values(table: Any) -> list[Any]:
        return [kind for theirs in values(table) for kind in (theirs, getattr(longspan, theirs.__name__, None))]

    module.get_values = get_values
    for name in [name for name in vars(module) if name.startswith(("FlaxAuto", "TFAuto"))]:
        setattr(module, name, getattr(longspan, name))
    if hasattr(module, "FLAX_MODEL_MAPPING"):
        pairs = [(config.__name__, module.FLAX_MODEL_MAPPING[config].__name__) for config in module.FLAX_MODEL_MAPPING]
        pairs = [pair for pair in pairs if all(hasattr(longspan, name) for name in pair)]
        module.FLAX_MODEL_MAPPING = {getattr(longspan, config): getattr(longspan, name) for config, name in pairs}
    if hasattr(module, "keras"):
        import keras

        module.keras, module.ModelOutput = keras, longspan.ModelOutput


def make_case(framework: str, family: str, library: Any, module: Any) -> type[unittest.TestCase]:
    """The tests of a family's classes in a library."""
    settings, suffixes, flags, attributes = FAMILIES[family]
    prefix, _, mixin = FRAMEWORKS[framework]
    if framework == "flax" or (framework == "keras" and family != "Bert"):
        # whose tests compile each class tens of times: these stand for the others
        suffixes = tuple(suffix for suffix in suffixes if suffix in STAND_INS)
    names = [prefix + family + suffix for suffix in suffixes]
    names = [name.replace("FlaxBertLMHeadModel", "FlaxBertForCausalLM") for name in names]
    classes = tuple(getattr(library, name) for name in names)

    def prepare(self: Any) -> None:
        if framework == "torch":
            import torch

            torch.manual_seed(0)
        self.model_tester = Tester(framework, classes[0].config_class, settings, attributes)

    def of_class(self: Any, error: type[Exception], words: str, *others: Any, **named: Any) -> Any:
        return self.assertRaises(error, *others, **named)  # noqa: PT027  they are unittest's tests

    body = {"all_model_classes": classes, "setUp": prepare, "test_onnx": False, **flags}
    if library.__name__ == "longspan":
        body["assertRaisesRegex"] = of_class
    return type(f"{family}Test", (getattr(module, mixin), unittest.TestCase), body)


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise in the block if it takes longer, in the processor's time: a busy machine changes no result."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"more than {seconds} s of processor time")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def run(case: type[unittest.TestCase]) -> dict[str, str]:
    """What became of each test: "passed", "skipped", or the last line of its error."""
    found = {}
    for name in unittest.TestLoader().getTestCaseNames(case):
        result, silence = unittest.TestResult(), io.StringIO()
        with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence), time_limit(SECONDS):
            case(name).run(result)
        errors = [text for _, text in (*result.failures, *result.errors)]
        sys.stderr.write(f"{name}\n")
        found[name] = errors[0].strip().splitlines()[-1][:300] if errors else "skipped" if result.skipped else "passed"
    return found


def run_side(framework: str, family: str, library: str, directory: Path) -> dict[str, str]:
    """The results of one library, in a process of its own: the reference's Keras is another one than ours."""
    with tempfile.TemporaryDirectory() as home:
        report = Path(home, "report.json")
        command = [sys.executable, __file__, framework, str(directory), "--only", family, "--side", library]
        # others are slow to import
        switches = {name: "AUTO" if kind == framework else "0" for kind, name in SWITCHES.items()}
        settings = {"HF_HUB_OFFLINE": "1", "RUN_SLOW": "1", "TF_USE_LEGACY_KERAS": "1", **QUICK_COMPILING}
        settings["JAX_COMPILATION_CACHE_DIR"] = home
        environment = {**os.environ, **switches, **settings}
        subprocess.run([*command, "--report", str(report)], check=True, env=environment)
        found: dict[str, str] = json.loads(report.read_text())
    return found


def work(framework: str, family: str, library: str, directory: Path) -> dict[str, str]:
    """What such a process does."""
    warnings.simplefilter("ignore")
    import transformers

    transformers.logging.set_verbosity_error()
    module = load_module(framework, directory)
    if library == "longspan" and framework != "torch":
        put_ours_in(module)
    return run(make_case(framework, family, importlib.import_module(library), module))


def main() -> None:
    """Run both sides, family by family."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("framework", choices=FRAMEWORKS)
    parser.add_argument("directory", type=Path, help="the reference's tests")
    parser.add_argument("--only", nargs="*", default=list(FAMILIES), help="families")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    families = [family for family in FAMILIES if family.lower() in map(str.lower, given.only)]
    if given.side:
        given.report.write_text(json.dumps(work(given.framework, families[0], given.side, given.directory)))
        return
    for family in families:
        sides = ("transformers",) if given.framework in HAS_REFERENCE[family] else ()
        theirs, ours = (
            run_side(given.framework, family, side, given.directory) if side in (*sides, "longspan") else {}
            for side in ("transformers", "longspan")
        )
        row = compare(theirs, ours, {*PRIVATE[given.framework], *DIFFERENT, *ONLINE})
        print(f"{family}: {row['both']} of the {row['reference']} that the reference passes; ", end="")
        print(f"{row['alone']['passed']} of {row['alone']['run']} others", flush=True)
        for name in (*row["failed"], *row["skipped"], *row["alone"]["failed"]):
            print(f"  {name}: {ours[name]}")
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        results.setdefault(given.framework, {})[family] = row
        RESULTS.write_text(json.dumps(results, indent=2, sort_keys=True) + "\n")


def compare(theirs: dict[str, str], ours: dict[str, str], left_out: set[str]) -> dict[str, Any]:
    """What is written of a family, from the results of both sides."""
    counted = [name for name, result in theirs.items() if result == "passed" and name not in left_out]
    wrong = [name for name in counted if ours[name] != "passed"]
    others = [name for name, result in ours.items() if name not in {*counted, *left_out} and result != "skipped"]
    failed = [name for name in others if ours[name] != "passed"]
    return {
        "reference": len(counted),
        "both": len(counted) - len(wrong),
        "failed": [name for name in wrong if ours[name] != "skipped"],
        "skipped": [name for name in wrong if ours[name] == "skipped"],
        "alone": {"run": len(others), "passed": len(others) - len(failed), "failed": failed},
    }


if __name__ == "__main__":
    main()
