"""Ray: two actors give what one process gives, also where one dies: in Ray Data, and in commands with `--ray`."""

from __future__ import annotations

import os
import sys

import pytest
from tests.docs.engines import engine_code, remark
from tests.ecosystem import ray_tasks
from tests.pipelines.task_models import make_summarizer, make_task_model
from tests.processes import run_group
from tests.tiny_encoder import make_sentence_model

pytestmark = pytest.mark.ecosystem
WORKER = r"""
import os
import sys
import numpy as np
import ray
from longspan.batch import Embed

model, tiny, classifier, summarizer, folder = sys.argv[1:]
mark = folder + "/died"
texts = [f"document {number} " + "of several words " * (number % 7) for number in range(120)]
texts[11] = None

class Mortal(Embed):
    # dies once, in the middle of the work
    def __call__(self, batch):
        if 57 in list(batch["id"]):
            try:
                os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                pass
            else:
                os._exit(1)
        return super().__call__(batch)

quiet = {"include_dashboard": False, "configure_logging": False, "log_to_driver": False}
ray.init(num_cpus=2, object_store_memory=200_000_000, **quiet)
rows = [{"id": number, "text": text} for number, text in enumerate(texts)]
mapped = ray.data.from_items(rows, override_num_blocks=6).map_batches(
    Mortal, fn_constructor_args=[model], batch_size=10, concurrency=2
)
found = sorted(mapped.take_all(), key=lambda row: row["id"])
assert [row["id"] for row in found] == list(range(120)), "a record was lost or doubled"
assert os.path.exists(mark), "no actor died"
alone = Embed(model)({"text": texts})
assert [row["error"] for row in found] == alone["error"]
assert found[11]["error"] and np.isnan(found[11]["embedding"]).all()
np.testing.assert_allclose(np.stack([row["embedding"] for row in found]), alone["embedding"], rtol=1e-4, atol=1e-6)
print("Ray Data ok")

# commands on the same cluster
import json
import pathlib
import signal
from longspan.cli.main import app
from longspan.cli.running import run
from longspan.embeddings.embed_files import EmbedOptions, embed_files
from longspan.embeddings.ray_encoder import RayEncoder
from longspan.embeddings.sentence_encoder import SentenceEncoder
from longspan.errors import InputError, LongspanError
from longspan.pipelines.run import ray_pool
from longspan.pipelines.run.progress import Progress
from longspan.pipelines.run.ray_pool import ClusterError, RayOptions, RayPool

os.chdir(folder)
docs = pathlib.Path("docs")
docs.mkdir()
for number in range(30):
    (docs / f"{number:02}.txt").write_text("the log file is open and the window is closed\n" * (7 * number % 23))
records = [json.dumps({"text": f"the record {number} of Ada in London"}) for number in range(150)]
records[20], records[90] = "no json", json.dumps({"text": 7})
(docs / "records.jsonl").write_text("\n".join(records))


class Killer(Progress):
    # ends an actor, or this process's run, when some passages are done
    def __init__(self, act):
        self.act, self.calls = act, 0

    def advance(self, amount, num_tokens):
        self.calls += 1
        if self.calls == 4:
            self.act()


def stop():
    raise KeyboardInterrupt


options = EmbedOptions(batch_tokens=64)
alone = embed_files([docs], "alone.parquet", encoder=SentenceEncoder(tiny), options=options)
with_ray = RayEncoder(tiny, options=RayOptions(actors=2))
print("actors began")
pids = with_ray._pool.ask(lambda loaded: os.getpid())
assert len({*pids, os.getpid()}) == 3
killer = Killer(lambda: os.kill(pids[0], signal.SIGKILL))
found = embed_files([docs], "killed.parquet", encoder=with_ray, options=options, progress=killer)
assert killer.calls > 8
assert pids[0] not in with_ray._pool.ask(lambda loaded: os.getpid()), "no actor died"
assert pathlib.Path("killed.parquet").read_bytes() == pathlib.Path("alone.parquet").read_bytes()
assert (found.num_documents, found.problems) == (alone.num_documents, alone.problems)
assert len(found.problems) == 2
print("an actor died")
try:
    embed_files([docs], "resumed.parquet", encoder=with_ray, options=options, progress=Killer(stop))
except KeyboardInterrupt:
    pass
resumed = embed_files([docs], "resumed.parquet", encoder=SentenceEncoder(tiny), options=options)
assert 0 < resumed.num_new_tokens < alone.num_new_tokens
assert pathlib.Path("resumed.parquet").read_bytes() == pathlib.Path("alone.parquet").read_bytes()
"""

#: pools of their own, for which there is room when the actors of the encoder are gone
DEATHS = """
def refuse(loaded):
    raise InputError("of the work")


def die(loaded):
    os._exit(1)


ray_pool._RETRIES = 1  # each takes a new process
with RayPool(dict, RayOptions(actors=1)) as pool:
    assert list(pool.map(lambda loaded, one: one, [(1,), (2,)])) == [1, 2]
    for act, kind, words in [(refuse, InputError, "of the work"), (die, ClusterError, "that died 2 times at the same")]:
        try:
            list(pool.map(act, [()]))
        except LongspanError as error:
            assert type(error) is kind and words in str(error), error
        else:
            raise AssertionError("nothing was raised")
print("commands ok")
"""

#: the code of the guide is run with one actor, for the first job above has two
ONE_ACTOR = """
with_two = ray.data.Dataset.map_batches


def map_batches(data, *given, concurrency, **named):
    assert concurrency == 2
    return with_two(data, *given, concurrency=1, **named)


ray.data.Dataset.map_batches = map_batches
"""


@pytest.fixture(scope="module")
def output(minilm_dir, tmp_path_factory):
    """What the script writes; all of it runs on one cluster, which takes long to begin."""
    folder = tmp_path_factory.mktemp("ray")
    models = [minilm_dir, make_sentence_model(folder / "tiny")]
    models.append(make_task_model(folder / "classifier", "text-classification", "wordpiece", minilm_dir))
    models.append(make_summarizer(folder / "summarizer", minilm_dir))
    ray_tasks.make_models(folder / "tasks", minilm_dir)
    work = folder / "work"
    (work / "models").mkdir(parents=True)
    (work / "models" / "encoder").symlink_to(minilm_dir, target_is_directory=True)
    script = folder / "script.py"
    script.write_text(f"{WORKER}{ray_tasks.CODE}{DEATHS}{ONE_ACTOR}{engine_code('Ray Data')}")
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": "/tmp", "RAY_DATA_DISABLE_PROGRESS_BARS": "1"}
    quiet["RAY_DATA_CLUSTER_AUTOSCALER"] = "V1"  # the second one has a process of its own
    done = run_group(
        [sys.executable, str(script), *map(str, models), str(work)],
        env={**os.environ, **quiet},
        cwd=work,
        timeout=550,
    )
    return done.stdout + "\n" + done.stderr[-3000:]


def test_two_actors_of_which_one_dies(output: str):
    assert "Ray Data ok\n" in output, output  # Ray writes there too


def test_commands_on_a_cluster(output: str):
    assert "commands ok\n" in output, output
    written = output.split("actors began\n")[1].split("an actor died\n")[0]
    assert "(raylet)" not in written  # on the standard output are results only


def test_every_task_on_a_cluster(output: str):
    assert "all tasks ok\n" in output, output


def test_the_code_of_the_guide(output: str):
    assert remark("Ray Data") in output.split("commands ok\n")[1].splitlines(), output
