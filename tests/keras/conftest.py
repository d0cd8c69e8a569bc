"""Set-up of the Keras tests: TensorFlow is imported once, when the first test runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.keras.setting import import_keras

HERE = Path(__file__).parent


@pytest.fixture(scope="session", autouse=True)
def keras():
    """Keras, with TensorFlow behind it."""
    return import_keras()


@pytest.fixture(autouse=True)
def _seeded(keras):
    keras.utils.set_random_seed(0)


@pytest.fixture
def eagerly(keras):
    """Functions that TensorFlow would trace and compile run as they are, which gives the same in less time."""
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def pytest_collection_modifyitems(items):
    """Keras converts TensorFlow's tensors by `np.array(tensor)`, of which NumPy 2 warns; Keras has to mend that."""
    known = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
    for item in items:
        if item.path.parent == HERE:
            item.add_marker(known)
