"""Spark: the callables of `longspan.batch` as they are in `mapInPandas` and in a pandas UDF."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from tests.docs.engines import engine_code, remark
from tests.pipelines.task_models import make_task_model
from tests.processes import run_group

pytestmark = pytest.mark.ecosystem
SPARK = Path(sys.prefix) / "spark"
WORKER = """
import sys
from collections.abc import Iterator
import pandas
from pyspark.sql import SparkSession
from pyspark.sql.functions import pandas_udf, struct
from longspan.batch import Classify

model, folder = sys.argv[1:]
texts = [f"document {number} " + "of several words " * (number % 7) for number in range(40)]
texts[11] = None
classify = Classify(model)
expected = classify({"id": list(range(40)), "text": texts})
options = {
    "spark.ui.enabled": "false", "spark.driver.memory": "512m", "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1", "spark.sql.warehouse.dir": folder, "spark.local.dir": folder,
    "spark.sql.execution.arrow.maxRecordsPerBatch": "8",
}
spark = SparkSession.builder.master("local[1]").config(map=options).getOrCreate()
spark.sparkContext.setLogLevel("ERROR")
frame = spark.createDataFrame(list(enumerate(texts)), "id long, text string").repartition(2)


def same(rows):
    found = sorted(rows, key=lambda row: row["id"])
    assert [row["id"] for row in found] == expected["id"], "a record was lost or doubled"
    for name in ("label", "error"):
        assert [row[name] for row in found] == expected[name]
    pairs = zip([row["score"] for row in found], expected["score"])
    assert all(one is other is None or abs(one - other) < 1e-5 for one, other in pairs)
    assert found[11]["error"] and found[11]["label"] is None


schema = "id long, text string, label string, score double, error string"
same(frame.mapInPandas(lambda batches: map(classify, batches), schema).collect())


@pandas_udf("label string, score double, error string")
def labels(batches: Iterator[pandas.DataFrame]) -> Iterator[pandas.DataFrame]:
    return (classify(batch)[["label", "score", "error"]] for batch in batches)


same(frame.select("id", labels(struct("text")).alias("made")).select("id", "made.*").collect())
"""


@pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java")
@pytest.mark.skipif(not SPARK.exists(), reason="make ecosystem installs tests/ecosystem/spark.txt in .venv/spark")
def test_pandas_functions(minilm_dir: Path, tmp_path: Path):
    model = make_task_model(tmp_path / "model", "text-classification", "wordpiece", minilm_dir)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "encoder").symlink_to(minilm_dir, target_is_directory=True)
    script = tmp_path / "script.py"
    script.write_text(f"{WORKER}{engine_code('Spark')}spark.stop()\n")
    path = os.pathsep.join([str(SPARK), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = run_group(
        [sys.executable, str(script), str(model), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path, "PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"},
        cwd=tmp_path,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == remark("Spark")
