import os
import subprocess
import sys

import numpy as np
import pytest

from longspan.products import product


@pytest.mark.parametrize(
    ("num", "rows", "size"), [(1, 5000, 384), (4, 5000, 384), (5, 7, 3), (32, 512, 768), (200, 900, 400)]
)
def test_products_are_those_of_blas(num, rows, size):
    generator = np.random.default_rng(0)
    x, y = (generator.standard_normal((count, size)).astype(np.float32) for count in (num, rows))
    result = product(x, y)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, x.astype(np.float64) @ y.T.astype(np.float64), rtol=0, atol=1e-4)


SPINNING = """
import time
import numpy as np
from longspan.products import product
x, y = np.ones(({num}, 384), np.float32), np.ones(({rows}, 384), np.float32)
time.sleep(0.3)  # BLAS' threads spin when they are born, too
product(x, y)
start = time.process_time()
time.sleep(0.05)
print(time.process_time() - start)
"""


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="OpenBLAS has one thread")
@pytest.mark.parametrize(("num", "rows"), [(1, 20_000), (32, 512)], ids=["a search", "a projection"])
def test_no_thread_spins_after_a_small_product(num, rows):
    """BLAS' threads would, for 50 of the 50 ms: PyTorch's products would wait for their cores."""
    command = [sys.executable, "-c", SPINNING.format(num=num, rows=rows)]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    busy = float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
    assert busy < 0.02
