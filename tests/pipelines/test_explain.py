"""`longspan explain`: right values for every family, and errors. The page: `test_explain_page.py`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.pipelines.explained import FAMILIES, make_model, whole_maps
from tests.pipelines.task_models import TEXTS, make_task_model

import longspan
from longspan import pipeline
from longspan.cli.main import app
from longspan.cli.running import run
from longspan.errors import InputError
from longspan.pipelines.explain.explanation import explain

LONG = " ".join(TEXTS * 40)
SHORT = " ".join(TEXTS[:2])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, minilm_dir: Path) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("explain")
    return {family: make_model(root / family, family, minilm_dir) for family in FAMILIES}


def model_of(run_: Any) -> Any:
    return (
        getattr(run_.model, "model", run_.model) if "longspan.pipelines" in type(run_.model).__module__ else run_.model
    )


def ids_of(run_: Any, text: str) -> torch.Tensor:
    ids = run_.tokenizer(text, return_tensors="pt").input_ids
    assert isinstance(ids, torch.Tensor)
    return ids


@pytest.mark.parametrize("family", FAMILIES)
def test_values_are_those_of_the_whole_attention_maps(folders: dict[str, Path], family: str) -> None:
    run_ = pipeline(None, folders[family])
    found = explain(run_, SHORT)
    num_tokens = len(run_.tokenizer(SHORT, add_special_tokens=False).input_ids)
    ids = ids_of(run_, SHORT)
    lead = 0 if "longt5" in family else 1
    own = slice(lead, lead + num_tokens)
    maps = whole_maps(model_of(run_), ids).numpy()
    assert found.anchor == ("last" if "diffllama" in family else "first")
    query = own.stop - 1 if found.anchor == "last" else 0
    assert found.received.shape == found.from_anchor.shape == (*maps.shape[:2], num_tokens)
    assert np.allclose(found.received, maps.mean(axis=2)[..., own], atol=1e-6)
    assert np.allclose(found.from_anchor, maps[:, :, query, own], atol=1e-6)
    assert found.received.std() > 1e-4, "tokens must differ"
    assert bool((found.links < 0).any()) == ("diffllama" in family)
    if family != "longt5-global":  # a link to a summary is one to the first of its tokens
        among = maps[:, :, own, own]
        assert np.allclose(
            np.take_along_axis(among, found.linked, axis=-1) * (found.links != 0), found.links, atol=1e-6
        )
        strongest = -np.sort(-np.abs(among), axis=-1)[..., : found.links.shape[-1]]
        assert np.allclose(np.abs(found.links), strongest, atol=1e-6)
    assert np.abs(found.gradient).min() > 0
    assert ("no map" in found.note) == ("mega" in family)


def test_links_to_summaries_lead_to_their_first_tokens(folders: dict[str, Path]) -> None:
    run_ = pipeline("text2text-generation", folders["longt5-global"])
    found = explain(run_, SHORT)
    ids = ids_of(run_, SHORT)
    weights = run_.model.encoder(ids, output_attentions=True).attentions[0].detach()
    rows = run_.model.config.local_radius + 1
    assert weights.shape[-1] - 3 * rows == ids.shape[1] // 4
    of_summaries = weights[0, 0, :, 0, 3 * rows :].numpy()  # of the first token
    for head in range(4):
        links = dict(zip(found.linked[0, head, 0].tolist(), found.links[0, head, 0].tolist(), strict=False))
        far = [key for key in links if key > 5]
        assert all(key % 4 == 0 for key in far)
        assert np.allclose([links[key] for key in far], of_summaries[head][np.array(far, int) // 4], atol=1e-6)


@pytest.mark.parametrize("family", ["bert", "mega", "diffllama", "longformer"])
def test_gradient_times_input_is_the_derivative_of_the_score(folders: dict[str, Path], family: str) -> None:
    """Scaling a token's embedding by 1 + e changes the score by e times its value."""
    classify = pipeline("text-classification", folders[family])
    found = explain(classify, TEXTS[0])
    model = classify.model.model.double()
    ids = ids_of(classify, TEXTS[0])
    more = {"global_attention_mask": (torch.arange(ids.shape[1]) == 0)[None].long()} if family == "longformer" else {}
    embeds = model.get_input_embeddings()(ids).detach()
    token = int(np.abs(found.gradient).argmax())
    scores = []
    for factor in (1 - 1e-4, 1 + 1e-4):
        scaled = embeds.clone()
        scaled[0, 1 + token] *= factor
        scores.append(model(inputs_embeds=scaled, **more).logits.amax().item())
    assert (scores[1] - scores[0]) / 2e-4 == pytest.approx(found.gradient[token], rel=2e-3)


def test_gradient_of_an_encoder_and_decoder_is_that_of_the_first_token_it_writes(folders: dict[str, Path]) -> None:
    run_ = pipeline("text2text-generation", folders["longt5"])
    found = explain(run_, TEXTS[0])
    model = run_.model.double()
    embeds = model.get_input_embeddings()(ids_of(run_, TEXTS[0])).detach()
    scores = []
    for factor in (1 - 1e-4, 1 + 1e-4):
        scaled = embeds.clone()
        scaled[0, 3] *= factor
        scores.append(model(inputs_embeds=scaled, decoder_input_ids=torch.tensor([[0]])).logits.amax().item())
    assert (scores[1] - scores[0]) / 2e-4 == pytest.approx(found.gradient[3], rel=2e-3)


@pytest.mark.parametrize("family", ["longformer", "diffllama-lm", "bert"])
def test_long_documents_are_seen_in_windows(folders: dict[str, Path], family: str) -> None:
    found = explain(pipeline(None, folders[family]), LONG)
    num_tokens = len(found.starts)
    assert found.num_windows > 5
    assert found.received.shape[-1] == found.links.shape[-2] == len(found.gradient) == num_tokens > 500
    distance = np.abs(found.linked - np.arange(num_tokens)[:, None])[found.links != 0]
    assert distance.max() < 128, "links stay in the window"
    assert distance.max() > 0
    assert found.linked.max() > num_tokens - 20, "and are counted in tokens of the document"


def test_questions_and_shorter_windows(tmp_path: Path, minilm_dir: Path, folders: dict[str, Path]) -> None:
    folder = make_task_model(tmp_path / "qa", "question-answering", "wordpiece", minilm_dir)
    asked = explain(pipeline("question-answering", folder), {"question": "Who?", "context": TEXTS[0]})
    assert asked.text == TEXTS[0]
    assert asked.text[asked.starts[0] : asked.ends[0]].lower() == "ada"
    assert explain(pipeline(None, folders["longt5"]), LONG, max_length=100).num_windows > 5
    assert explain(pipeline(None, folders["longt5"]), SHORT).num_windows == 1


def test_4096_tokens_of_a_longformer_take_no_square(tmp_path: Path, minilm_dir: Path) -> None:
    """The links of a token are those of its window; the maps of 4,096 x 4,096 of 2 layers and 3 heads are 400 MB."""
    import resource

    folder = make_task_model(tmp_path / "long", "text-classification", "byte_level", minilm_dir)
    config = longspan.LongformerConfig.from_pretrained(folder)
    config.max_position_embeddings = 4098
    model = longspan.LongformerForSequenceClassification(config)
    tokenizer = longspan.AutoTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = 4096
    classify = pipeline("text-classification", model, tokenizer)
    text = " ".join(TEXTS * 200)[:9000]
    num_tokens = len(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)
    explain(classify, SHORT)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = explain(classify, text, on_long="truncate")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert num_tokens > 4094
    assert (found.num_windows, len(found.starts)) == (1, 4094)
    assert grown < 200 * 1024, f"{grown} KiB"
    distance = np.abs(found.linked - np.arange(4094)[:, None])[found.links != 0]
    assert distance.max() <= 8, "half a window; the global token is a special one"
    assert np.isfinite(found.received).all()
    assert (found.received.sum(axis=-1) > 0.5).all(), "the global token receives the rest"


def test_command(tmp_path: Path, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text(LONG)
    arguments = ["explain", str(tmp_path / "a.txt"), "-m", str(folders["bert"]), "-o", str(tmp_path / "a.html")]
    assert run(app, arguments) == 0
    assert re.search(r"a.html: [\d,]+ tokens, \d+ windows", capsys.readouterr().out)
    assert run(app, arguments) == 1
    assert "The output must not exist yet (or give --overwrite)" in capsys.readouterr().err
    (tmp_path / "b.txt").write_bytes(b"\x00binary")
    arguments[1:2] = [str(tmp_path / "b.txt")]
    assert run(app, [*arguments, "--overwrite"]) == 1
    assert "A document must be readable. Received:" in capsys.readouterr().err
    arguments = ["explain", str(tmp_path / "a.txt"), "-m", str(folders["longt5"]), "-o", str(tmp_path / "t.html")]
    assert run(app, [*arguments, "--max-length", "64"]) == 0
    assert "encoder&#x27;s attention" in (tmp_path / "t.html").read_text()


def test_a_query_shows_what_matches_it(minilm_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Gradient times input is the derivative of the cosine of the means."""
    text, query = "Rice is cooked. Log files are rotated at midnight.", "when do logs rotate?"
    extract = pipeline("feature-extraction", minilm_dir)
    found = explain(extract, text, query=query)
    model = extract.model.model.double()
    wanted = model(ids_of(extract, query)).last_hidden_state.mean(dim=1)
    embeds = model.get_input_embeddings()(ids_of(extract, text)).detach()
    token = int(np.abs(found.gradient).argmax())
    scores = []
    for factor in (1 - 1e-4, 1 + 1e-4):
        scaled = embeds.clone()
        scaled[0, 1 + token] *= factor
        states = model(inputs_embeds=scaled).last_hidden_state.mean(dim=1)
        scores.append(torch.cosine_similarity(states, wanted).item())
    assert (scores[1] - scores[0]) / 2e-4 == pytest.approx(found.gradient[token], rel=2e-3)
    (tmp_path / "a.txt").write_text(text)
    arguments = ["explain", str(tmp_path / "a.txt"), "-o", str(tmp_path / "a.html")]
    assert run(app, [*arguments, "--query", "logs", "--json"]) == 0
    assert '"windows": 1' in capsys.readouterr().out
    page = (tmp_path / "a.html").read_text()
    assert '<select id="what"><option>gradient × input</option><option>attention received' in page
    assert "What matches: &#x27;logs&#x27;." in page
    assert run(app, [*arguments, "--overwrite"]) == 2
    assert "give a model, or a query" in capsys.readouterr().err
    with pytest.raises(InputError, match="A query needs task='feature-extraction'. Received: task='fill-mask'"):
        explain(pipeline("fill-mask", make_task_model(tmp_path / "m", "fill-mask", "wordpiece", minilm_dir)), "a",
                query="b")  # fmt: skip


def test_errors(tmp_path: Path, folders: dict[str, Path], minilm_dir: Path) -> None:
    with pytest.raises(InputError, match="A document to explain must hold text. Received: ' .n'"):
        explain(pipeline("text-classification", folders["bert"]), " \n")
    with pytest.raises(InputError, match="explain needs framework='torch'. Received: framework='flax'"):
        explain(pipeline("text-classification", folders["bert"], framework="flax"), "text")
    choose = make_task_model(tmp_path / "choose", "multiple-choice", "wordpiece", minilm_dir)
    with pytest.raises(InputError, match="explain needs a task that reads one document with one model. Received: mul"):
        explain(pipeline("multiple-choice", choose), {"prompt": "a", "choices": ["b", "c"]})
    write = pipeline("text2text-generation", folders["longt5"])
    with pytest.raises(InputError, match="A text must have at least one token. Received: a text without any"):
        explain(write, "")
    with pytest.raises(InputError, match=r"max_length must lie in \[1, 128\]. Received: max_length=999"):
        explain(write, "a", max_length=999)
