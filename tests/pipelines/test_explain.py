"""`longspan explain`: right values, and a page that holds them all."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.pipelines.task_models import TEXTS, make_task_model

from longspan import pipeline
from longspan.cli.main import app
from longspan.cli.running import run
from longspan.errors import InputError
from longspan.pipelines.explain import explain
from longspan.pipelines.explain_page import page_of

LONG = " ".join(TEXTS * 40)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, minilm_dir: Path) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("explain")
    return {kind: make_task_model(root / kind, "text-classification", kind, minilm_dir)
            for kind in ("wordpiece", "byte_level")}  # fmt: skip


@pytest.mark.parametrize("kind", ["wordpiece", "byte_level"])
def test_values_are_those_of_the_whole_attention_map(folders: dict[str, Path], kind: str) -> None:
    """Attention is summed to 1 over keys, so what tokens receive sums to 1; BERT's equals its maps."""
    classify = pipeline("text-classification", folders[kind])
    found = explain(classify, TEXTS[0])
    num_tokens = len(classify.tokenizer(TEXTS[0], add_special_tokens=False).input_ids)
    assert found.received.shape == found.from_first.shape == (2, 3, num_tokens)
    assert found.gradient.shape == (num_tokens,)
    assert np.abs(found.gradient).max() > 0
    row = classify.tokenizer(TEXTS[0], return_tensors="pt")
    output = classify.model.model(**row, output_attentions=True)
    if kind == "wordpiece":
        maps = torch.stack(output.attentions)[:, 0].detach()
        assert np.allclose(found.received, maps.mean(dim=2)[..., 1:-1], atol=1e-6)
        assert np.allclose(found.from_first, maps[:, :, 0, 1:-1], atol=1e-6)
    else:
        shares = found.received.sum(axis=-1)
        assert ((shares > 0.3) & (shares <= 1.0 + 1e-5)).all(), "special tokens receive the rest"
        assert np.allclose(
            found.from_first, torch.stack(output.global_attentions)[:, 0, :, 1:-1, 0].detach(), atol=1e-6
        )


def test_gradient_times_input_is_the_derivative_of_the_score(folders: dict[str, Path]) -> None:
    """Scaling a token's embedding by 1 + e changes the score by e times its value."""
    classify = pipeline("text-classification", folders["wordpiece"])
    found = explain(classify, TEXTS[0])
    model = classify.model.model.double()
    ids = classify.tokenizer(TEXTS[0], return_tensors="pt").input_ids
    embeds = model.get_input_embeddings()(ids).detach()
    scores = []
    for factor in (1 - 1e-4, 1 + 1e-4):
        scaled = embeds.clone()
        scaled[0, 3] *= factor
        scores.append(model(inputs_embeds=scaled).logits.amax().item())
    assert (scores[1] - scores[0]) / 2e-4 == pytest.approx(found.gradient[2], rel=1e-3)


def test_long_documents_and_questions(tmp_path: Path, minilm_dir: Path, folders: dict[str, Path]) -> None:
    found = explain(pipeline("text-classification", folders["byte_level"]), LONG)
    assert found.num_windows > 5
    assert found.received.shape[-1] == len(found.starts) > 500
    folder = make_task_model(tmp_path / "qa", "question-answering", "wordpiece", minilm_dir)
    asked = explain(pipeline("question-answering", folder), {"question": "Who?", "context": TEXTS[0]})
    assert asked.text == TEXTS[0]
    assert asked.text[asked.starts[0] : asked.ends[0]].lower() == "ada"


def test_the_page_holds_every_token_and_value(folders: dict[str, Path]) -> None:
    text = TEXTS[0] + " </script><b>&amp;"
    found = explain(pipeline("text-classification", folders["wordpiece"]), text)
    page = page_of(found)
    assert page.count("</script>") == 2, "the document cannot end the script"
    assert not re.search(r"https?://|src=|href=", page), "self-contained"
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, flags=re.S)[1])
    assert "".join(data["characters"]) == text
    for name, values in (("attention received", found.received), ("gradient × input", found.gradient[None, None])):
        packed: Any = data["maps"][name]
        flat = np.frombuffer(base64.b64decode(packed["values"]), np.uint8).astype(float) - 128 * packed["signed"]
        shown = (flat.reshape(-1, values.shape[-1]) * np.array(packed["scales"])[:, None]).reshape(values.shape)
        assert np.abs(shown - values).max() <= np.abs(values).max() / 127


def test_command(tmp_path: Path, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text(LONG)
    arguments = ["explain", str(tmp_path / "a.txt"), "-m", str(folders["wordpiece"]), "-o", str(tmp_path / "a.html")]
    assert run(app, arguments) == 0
    assert re.search(r"a.html: [\d,]+ tokens, \d+ windows", capsys.readouterr().out)
    assert run(app, arguments) == 1
    assert "The output must not exist yet (or give --overwrite)" in capsys.readouterr().err
    (tmp_path / "b.txt").write_bytes(b"\x00binary")
    arguments[1:2] = [str(tmp_path / "b.txt")]
    assert run(app, [*arguments, "--overwrite"]) == 1
    assert "A document must be readable. Received:" in capsys.readouterr().err


def test_errors(folders: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="explain needs framework='torch'. Received: framework='flax'"):
        explain(pipeline("text-classification", folders["wordpiece"], framework="flax"), "text")
