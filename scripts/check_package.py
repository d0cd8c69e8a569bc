"""Build the wheel and the sdist, and run what they hold away from the source: python scripts/check_package.py [FOLDER].

The sdist is built first and the wheel from it, so what one lacks the other lacks. The wheel is installed into an empty
environment with its dependencies from the index, without any extra. Then, for each extra, a small job runs in an
environment that holds the wheel and, as links to this one, the distributions that the extra asks for, those that they
ask for, and no other.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
MODEL = "Config(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8, vocab_size=20)"
#: extras -> a job that they are enough for
JOBS = {
    "": """
import importlib.util, longspan
assert importlib.util.find_spec("torch") is None
assert longspan.BertConfig(hidden_size=24).hidden_size == 24
try:
    longspan.BertModel
except ImportError as error:
    assert "pip install 'longspan[torch]'" in str(error), error
else:
    raise AssertionError("BertModel without PyTorch")
from longspan.remedies import remedies
assert len(remedies()) > 30
""",
    "torch": f"""
import longspan, torch
model = longspan.BertModel(longspan.Bert{MODEL}).eval()
model.save_pretrained("saved")
again = longspan.AutoModel.from_pretrained("saved").eval()
ids = torch.tensor([[1, 2, 3]])
assert torch.equal(model(ids).last_hidden_state, again(ids).last_hidden_state)
""",
    "flax": f"""
import longspan, numpy
model = longspan.FlaxBertModel(longspan.Bert{MODEL})
assert model(numpy.ones((1, 3), dtype="int32")).last_hidden_state.shape == (1, 3, 8)
""",
    "keras": f"""
import longspan, numpy
model = longspan.TFBertModel(longspan.Bert{MODEL})
assert model(numpy.ones((1, 3), dtype="int32")).last_hidden_state.shape == (1, 3, 8)
""",
    "documents": """
import pathlib, pyarrow.parquet, pypdf
from longspan.documents.readers import read_documents
from longspan.documents.walk import find_files
writer = pypdf.PdfWriter()
writer.add_blank_page(100, 100)
writer.write("blank.pdf")
(problem,) = read_documents(find_files([pathlib.Path("blank.pdf")]).files[0])
assert "PDF of 1 pages without text" in problem.reason, problem
""",
    "torch,convert": f"""
import h5py, longspan, pathlib
from longspan.checkpoints.convert import convert
longspan.BertModel(longspan.Bert{MODEL}).save_pretrained("saved")
convert(pathlib.Path("saved"), pathlib.Path("converted"))
""",
    "torch,train": """
import accelerate, peft, longspan.training
assert callable(longspan.training.finetune)
""",
}  # fmt: skip


def tree_of(asked: list[str]) -> Iterator[tuple[str, str, Distribution | None]]:
    """What requirements lead to: name, the requirement that asks for it, what is installed of it or None."""
    waiting, seen = [Requirement(text) for text in asked], set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            try:
                found = distribution(name)
            except PackageNotFoundError:  # of an extra that this environment does without
                yield name, str(requirement), None
                continue
            if extra == "":
                yield name, str(requirement), found
            needed = [Requirement(text) for text in found.requires or []]
            waiting += [one for one in needed if one.marker is None or one.marker.evaluate({"extra": extra})]


def link_dependencies(installed: Path, extras: str, folder: Path) -> None:
    """Fill a folder with links to the distributions that the longspan in another folder asks for with extras."""
    folder.mkdir(parents=True)
    (own,) = distributions(path=[str(installed)])
    wanted = ("", *extras.split(","))
    needed = [Requirement(text) for text in own.requires or ()]
    asked = [str(one).partition(";")[0] for one in needed
             if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in wanted)]  # fmt: skip
    for _, _, found in tree_of(asked):
        for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"} if found else ():
            source, target = Path(str(found.locate_file(top))), folder / top
            if source.exists() and not target.exists():
                target.symlink_to(source)


def run(*command: str | Path, **options: object) -> str:
    """What a command prints; its failure ends the check with what it said."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))[:200]}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout


def main() -> None:
    """Build, install, run."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build" / "package").resolve()
    run("rm", "-rf", folder)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", ROOT)
    (wheel,), (sdist,) = (list((folder / "dist").glob(ending)) for ending in ("*.whl", "*.tar.gz"))
    venv.create(folder / "empty", with_pip=True)
    python = folder / "empty" / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", ROOT / "constraints.txt", wheel)
    run(python, "-m", "pip", "check")
    version = run(folder / "empty" / "bin" / "longspan", "--version", cwd=folder)
    assert version.split()[1] == wheel.name.split("-")[1], version
    run(python, "-c", JOBS[""], cwd=folder)
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder / "alone", wheel)
    for extras, job in JOBS.items():
        place = folder / f"with-{extras.replace(',', '-') or 'none'}"
        link_dependencies(folder / "alone", extras, place / "site")
        ran_from = f"assert longspan.__file__.startswith({str(folder)!r}), longspan.__file__"
        (place / "job.py").write_text(f"{job}\nimport longspan\n{ran_from}\n")
        paths = {"PYTHONPATH": f"{folder / 'alone'}:{place / 'site'}", "PATH": "/usr/bin:/bin"}
        # -S: without the packages of this environment
        run(sys.executable, "-S", "job.py", cwd=place, env={**paths, "TF_CPP_MIN_LOG_LEVEL": "3"})
        print(f"longspan[{extras}] runs")
    print(f"{wheel.name}, {sdist.name}")


if __name__ == "__main__":
    main()
