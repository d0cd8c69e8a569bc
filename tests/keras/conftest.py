"""Set-up of the Keras tests: TensorFlow is imported once, when the first test runs."""

from __future__ import annotations

import pytest
from tests.keras.setting import import_keras


@pytest.fixture(scope="session", autouse=True)
def keras():
    """Keras, with TensorFlow behind it."""
    return import_keras()


@pytest.fixture(autouse=True)
def _seeded(keras):
    keras.utils.set_random_seed(0)
