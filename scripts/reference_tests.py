"""Run the reference's own model tests with longspan's classes in the place of its own.

    HF_HUB_OFFLINE=1 python scripts/reference_tests.py DIRECTORY [--only bert longt5]

`DIRECTORY` holds the reference's `test_modeling_common.py`, of which nothing is part of longspan. It comes with the
source of its release (`pip download --no-deps --no-binary :all: transformers==4.57.6`) and needs `parameterized`.
What the tests ask of a family, a small configuration and a batch, is written here. Counted are the tests that the
reference passes; `benchmarks/results/reference_tests.json` gets the numbers and what failed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.machinery
import io
import json
import os
import signal
import sys
import types
import unittest
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

import longspan

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "reference_tests.json"
#: tests of how the reference is built inside, not of what a user calls
PRIVATE = {
    "test_sdpa_can_dispatch_non_composite_models": "the name of the implementation that `_attn_implementation` shows",
}
#: tests that want what longspan does otherwise on purpose (docs/differences.md)
DIFFERENT = {
    "test_model_weights_reload_no_missing_tied_weights": "loads files without weights: missing keys raise",
    "test_eager_matches_sdpa_inference_24_fp32_pad_left_output_attentions": "what a name cannot serve raises",
    "test_cannot_load_with_meta_device_context_manager": "wants an error: loading works there",
}
SECONDS = 300  # of one test

COMMON: dict[str, Any] = {"vocab_size": 99, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}
LAYERS = {**COMMON, "intermediate_size": 37, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
HEADS = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
#: of each family: settings, suffixes of classes, attributes of the test, attributes of the tester
FAMILIES: dict[str, tuple[dict[str, Any], tuple[str, ...], dict[str, Any], dict[str, Any]]] = {
    "Bert": (
        {**LAYERS, "max_position_embeddings": 64},
        (*HEADS, "LMHeadModel", "ForNextSentencePrediction", "ForMultipleChoice"),
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


class Tester:
    """What the reference's mixin asks about a family: sizes, a configuration and a batch."""

    batch_size, seq_length, num_choices, is_training = 13, 8, 4, True
    num_hidden_layers, num_attention_heads, hidden_size = 2, 4, 32

    def __init__(self, config_class: type, settings: dict[str, Any], attributes: dict[str, Any]) -> None:
        self.config_class, self.settings = config_class, settings
        self.encoder_seq_length = self.decoder_seq_length = self.key_length = self.seq_length
        self.__dict__.update(attributes)

    def get_config(self) -> Any:
        """A small configuration."""
        return self.config_class(**self.settings)

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, Any]]:
        """A configuration and a batch without labels."""
        config = self.get_config()
        ids = torch.randint(3, config.vocab_size, (self.batch_size, self.seq_length))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if config.is_encoder_decoder:
            inputs |= {"decoder_input_ids": ids.flip(1), "decoder_attention_mask": torch.ones_like(ids)}
        return config, inputs


def load_mixin(directory: Path) -> Any:
    """The reference's `ModelTesterMixin`, whose package is made of its folder."""
    package = types.ModuleType("reference_tests")
    package.__path__ = [str(directory)]
    sys.modules["reference_tests"] = package
    if not (directory / "generation").is_dir():  # the source distribution has the common tests only
        for name in ("generation", "generation.test_utils"):
            module = types.ModuleType(f"reference_tests.{name}")
            module.__path__ = []
            vars(module)["GenerationTesterMixin"] = type("GenerationTesterMixin", (), {})
            sys.modules[module.__name__] = module
    return importlib.import_module("reference_tests.test_modeling_common").ModelTesterMixin


def make_case(mixin: Any, family: str, library: Any) -> type[unittest.TestCase]:
    """The tests of a family's classes in a library."""
    settings, suffixes, flags, attributes = FAMILIES[family]
    classes = tuple(getattr(library, family + suffix) for suffix in suffixes)

    def prepare(self: Any) -> None:
        torch.manual_seed(0)
        self.model_tester = Tester(classes[0].config_class, settings, attributes)

    body = {"all_model_classes": classes, "setUp": prepare, **flags}
    return type(f"{family}Test", (mixin, unittest.TestCase), body)


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise in the block if it takes longer."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run(case: type[unittest.TestCase]) -> dict[str, str]:
    """What became of each test: "passed", "skipped", or the last line of its error."""
    found = {}
    for name in unittest.TestLoader().getTestCaseNames(case):
        result, silence = unittest.TestResult(), io.StringIO()
        with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence), time_limit(SECONDS):
            case(name).run(result)
        errors = [text for _, text in (*result.failures, *result.errors)]
        found[name] = errors[0].strip().splitlines()[-1][:300] if errors else "skipped" if result.skipped else "passed"
    return found


def main() -> None:
    """Run both sides, family by family."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="the reference's tests")
    parser.add_argument("--only", nargs="*", default=list(FAMILIES), help="families")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    os.environ["HF_HUB_OFFLINE"] = "1"
    mixin = load_mixin(arguments.directory)
    for family in FAMILIES:
        if family.lower() not in map(str.lower, arguments.only):
            continue
        theirs, ours = (run(make_case(mixin, family, library)) for library in (transformers, longspan))
        counted = [name for name, result in theirs.items() if result == "passed" and name not in (*PRIVATE, *DIFFERENT)]
        failed = {name: ours[name] for name in counted if ours[name] not in ("passed", "skipped")}
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        results[family] = {"reference": len(counted), "both": len(counted) - len(failed), "failed": sorted(failed)}
        print(f"{family}: {len(counted) - len(failed)} of the {len(counted)} that the reference passes", flush=True)
        for name, error in failed.items():
            print(f"  {name}: {error}")
        RESULTS.write_text(json.dumps(results, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
