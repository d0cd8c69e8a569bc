"""Small checkpoints under the names that examples use, in a cache as `huggingface_hub` lays it out.

Most have random weights. Where the old documentation printed what the published checkpoint gives, the head is set so
that the stand-in gives the same: a page then shows that tokenizer, model, labels and loss work together, not what the
published weights know.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from tests.tokenization.conftest import ROBERTA_SPECIAL, _make_llama, _make_unigram
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

import longspan

COMMIT = "c" * 40
#: what the byte-level vocabularies are made from
SENTENCES = ["Hello, my dog is cute", "The capital of France is Paris.", "It is eaten with a fork and a knife."]
CASED = [
    *[
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "Hu",
        "##gging",
        "##F",
        "##ace",
        "is",
        "a",
        "company",
        "based",
        "in",
    ],
    *["Paris", "and", "New", "York", "Who", "was", "Jim", "He", "##nson", "?", "nice", "puppet"],
]
ENTITIES = ["O", "B-MISC", "I-MISC", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]
SMALL: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 48}


def make_cache(cache: Path, minilm: Path) -> None:
    """Write all stand-ins."""
    makers: dict[str, Callable[[Path], None]] = {
        "jpwahle/longformer-base-plagiarism-detection": _plagiarism,
        "allenai/longformer-base-4096": _longformer,
        "google/long-t5-local-base": _longt5,
        "t5-base": lambda folder: _make_unigram({}, folder),
        "dbmdz/bert-large-cased-finetuned-conll03-english": _entities,
        "ydshieh/bert-base-cased-squad2": _squad,
        "bert-base-uncased": lambda folder: _uncased(folder, minilm),
        "google/diffllama-7b": _diffllama,
        "kajuma/DiffLlama-0.3B-handcut": _diffllama,
        "mnaylor/mega-base-wikitext": _mega,
    }
    for name, make in makers.items():
        torch.manual_seed(0)
        repository = cache / ("models--" + name.replace("/", "--"))
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(COMMIT)
        folder = repository / "snapshots" / COMMIT
        folder.mkdir(parents=True)
        make(folder)


def _byte_level(folder: Path, model_type: str) -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=ROBERTA_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 20, trainer)
    tokenizer.model.save(str(folder))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "RobertaTokenizer"}))
    return longspan.AutoTokenizer.from_pretrained(folder)


def _longformer_settings(folder: Path) -> dict[str, Any]:
    size = len(_byte_level(folder, "longformer"))
    return {**SMALL, "vocab_size": size, "max_position_embeddings": 130, "attention_window": 16, "type_vocab_size": 1}


def _plagiarism(folder: Path) -> None:
    """Scores (b, 0) for any text; the loss of the second class is log(1 + exp(b))."""
    settings = _longformer_settings(folder)
    config = longspan.LongformerConfig(**settings, id2label={0: "ORIGINAL", 1: "PLAGIARISM"})
    model = longspan.LongformerForSequenceClassification(config)
    _set(model.classifier.out_proj, bias=[math.log(math.exp(5.44) - 1), 0.0])
    model.save_pretrained(folder)


def _longformer(folder: Path) -> None:
    longspan.LongformerForMaskedLM(longspan.LongformerConfig(**_longformer_settings(folder))).save_pretrained(folder)


def _longt5(folder: Path) -> None:
    _make_unigram({}, folder)
    config = longspan.LongT5Config(
        vocab_size=len(longspan.AutoTokenizer.from_pretrained(folder)),
        d_model=32, d_kv=16, d_ff=48, num_layers=1, num_heads=2, pad_token_id=0, eos_token_id=1,
        decoder_start_token_id=0,
    )  # fmt: skip
    longspan.LongT5ForConditionalGeneration(config).save_pretrained(folder)


def _cased(folder: Path, kind: Any, **settings: Any) -> Any:
    (folder / "vocab.txt").write_text("\n".join(CASED) + "\n")
    stored = {"tokenizer_class": "BertTokenizer", "do_lower_case": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(stored))
    config = longspan.BertConfig(**SMALL, vocab_size=len(CASED), max_position_embeddings=64, **settings)
    return kind(config).eval()


def _entities(folder: Path) -> None:
    """Scores c for the right label of each token and 0 for others; the loss is log(1 + 8 exp(-c))."""
    model = _cased(folder, longspan.BertForTokenClassification, id2label=dict(enumerate(ENTITIES)))
    inputs = _read(folder, "HuggingFace is a company based in Paris and New York", add_special_tokens=False)
    right = ["O", *["I-ORG"] * 3, *["O"] * 5, "I-LOC", "O", "I-LOC", "I-LOC"]
    scores = torch.zeros(len(right), len(ENTITIES))
    scores[range(len(right)), [ENTITIES.index(label) for label in right]] = math.log(8 / math.expm1(0.01))
    _fit(model.classifier, model.bert(**inputs).last_hidden_state[0], scores)
    model.save_pretrained(folder)


def _squad(folder: Path) -> None:
    """Scores c at the start and the end of the answer and 0 elsewhere; a wrong place costs log(exp(c) + S - 1)."""
    model = _cased(folder, longspan.BertForQuestionAnswering)
    inputs = _read(folder, "Who was Jim Henson?", "Jim Henson was a nice puppet")
    states = model.bert(**inputs).last_hidden_state[0]
    scores = torch.zeros(len(states), 2)
    for column, place in enumerate((12, 14)):  # "a" and "puppet"; the example asks for 14 and 15
        scores[place, column] = math.log(math.exp(7.41) - len(states) + 1)
    _fit(model.qa_outputs, states, scores)
    model.save_pretrained(folder)


def _uncased(folder: Path, minilm: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(minilm / name, folder)
    config = longspan.BertConfig(**SMALL, max_position_embeddings=64)
    longspan.BertForPreTraining(config).save_pretrained(folder)


def _diffllama(folder: Path) -> None:
    _make_llama(folder)
    size = len(longspan.AutoTokenizer.from_pretrained(folder))
    longspan.DiffLlamaForCausalLM(longspan.DiffLlamaConfig(**SMALL, vocab_size=size)).save_pretrained(folder)


def _mega(folder: Path) -> None:
    """Scores c for " Paris" and 0 for others, whatever the text; the loss is log(1 + (V - 1) exp(-c))."""
    tokenizer = _byte_level(folder, "mega")
    config = longspan.MegaConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, intermediate_size=48)
    model = longspan.MegaForMaskedLM(config)
    bias = torch.zeros(len(tokenizer))
    (paris,) = tokenizer(" Paris", add_special_tokens=False).input_ids
    bias[paris] = math.log((len(tokenizer) - 1) / math.expm1(0.1))
    _set(model.dense, bias=torch.zeros(32))
    model.mlm_head.bias.data = bias
    model.save_pretrained(folder)


def _read(folder: Path, *texts: str, **options: Any) -> Any:
    return longspan.AutoTokenizer.from_pretrained(folder)(*texts, return_tensors="pt", **options)


def _set(linear: torch.nn.Linear, bias: Iterable[float]) -> None:
    linear.weight.data.zero_()
    linear.bias.data = torch.as_tensor(bias, dtype=torch.float32)


def _fit(linear: torch.nn.Linear, states: torch.Tensor, scores: torch.Tensor) -> None:
    """Weights that turn these states (S, H), fewer than H, into these scores (S, N)."""
    weights = torch.linalg.pinv(states.detach().double()) @ scores.double()
    _set(linear, torch.zeros(scores.shape[1]))
    linear.weight.data = weights.T.float().contiguous()
