"""Part of the script of test_ray.py: the tasks of commands, on the actors that its encoder has."""

from __future__ import annotations

from pathlib import Path

from tests.pipelines.task_models import make_task_model, randomize

import longspan
from longspan import AutoTokenizer

CODE = r"""
from functools import partial
from longspan.pipelines import file_tasks

tasks = pathlib.Path(folder).parent / "tasks"
rows = [{"text": f"Ada wrote the [MASK] {number} in London"} for number in range(9)]
rows[3] = {"text": 7}
pathlib.Path("few.jsonl").write_text("\n".join([*map(json.dumps, rows), "no json"]))
used, ray_words = set(), ["--ray", "--ray-actors", "2"]


def on_loaded(load, act, loaded, *arguments):
    tasks = vars(loaded).setdefault("tasks", {})
    if load.args[0] not in tasks:
        tasks[load.args[0]] = load()
    return act(tasks[load.args[0]], *arguments)


class Shared:
    # what a command takes for a pool of its own: actors take longest to start

    def __init__(self, load, options):
        assert options == RayOptions(actors=2)
        self._load = load
        used.add(load.args[0])

    def ask(self, act):
        return actors.ask(partial(on_loaded, self._load, act))

    def map(self, act, work, watch=None):
        return actors.map(partial(on_loaded, self._load, act), work, watch)

    def close(self):
        pass


actors, file_tasks.RayPool = with_ray._pool, Shared
for name, words in {
    "classify": ["docs"],
    "summarize": ["docs/records.jsonl", "--max-new-tokens", "4", "--max-length", "32"],
    "tag": ["few.jsonl"],
    "answer": ["few.jsonl", "--question", "Where?"],
    "choose": ["few.jsonl", "--choice", "read", "--choice", "write"],
    "fill": ["few.jsonl"],
    "generate": ["--file", "few.jsonl", "--max-new-tokens", "3"],
}.items():
    model = {"classify": classifier, "summarize": summarizer}.get(name, str(tasks / name))
    command = [name, *words, "-m", model, "-q"]
    codes = [run(app, [*command, "-o", f"{way}.jsonl", *more]) for way, more in [("a", []), ("b", ray_words)]]
    assert codes == [3, 3], (name, codes)  # bad records were left out
    one, other = (pathlib.Path(f"{way}.jsonl").read_bytes() for way in "ab")
    assert one == other and one.count(b"\n") >= (141 if words == ["docs"] else 8), name
    pathlib.Path("a.jsonl").unlink()
    pathlib.Path("b.jsonl").unlink()
assert used == {"classify", "summarize", "tag", "answer", "choose", "fill", "continue"}, used
with_ray.close()
assert not [path for path in pathlib.Path().iterdir() if path.name.startswith(".")]
print("all tasks ok")
"""


def make_models(folder: Path, minilm: Path) -> None:
    """The models of the tasks, each in a folder of its task's name."""
    kinds = {"tag": "token-classification", "answer": "question-answering", "choose": "multiple-choice",
             "fill": "fill-mask"}  # fmt: skip
    for name, task in kinds.items():
        make_task_model(folder / name, task, "wordpiece", minilm)
    config = longspan.DiffLlamaConfig(
        vocab_size=len(AutoTokenizer.from_pretrained(folder / "fill")), hidden_size=16, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, intermediate_size=24, pad_token_id=0,
    )  # fmt: skip
    model = longspan.DiffLlamaForCausalLM(config)
    randomize(model, 0.3)
    AutoTokenizer.from_pretrained(folder / "fill").save_pretrained(folder / "generate")
    model.save_pretrained(folder / "generate")
