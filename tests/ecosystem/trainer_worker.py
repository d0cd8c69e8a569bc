"""Runs the Trainer of whichever `transformers` is on the path on every kind of model; a fault ends it with an error.

`trainer_worker.py CHECKS...`: names of functions here, which it runs in turn.
"""

from __future__ import annotations

import pickle
import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.modules["sklearn"] = None  # for metrics that nothing here asks for, and with it come pandas and scipy

import numpy as np
import torch
import transformers
from tests.ecosystem.models import IDS, batch, make
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments

from longspan.integrations.hf import adapt


def rows(name, **more):
    """A data set of six rows."""
    whole = {**batch(name), **more}
    return [{key: value[index % 2] for key, value in whole.items()} for index in range(6)]


def collate(examples):
    return {key: torch.stack([example[key] for example in examples]) for key in examples[0]}


def arguments(directory, kind=TrainingArguments, **settings):
    usual = {
        "output_dir": directory,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "max_steps": 3,
        "learning_rate": 0.01,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_steps": 1,
        "remove_unused_columns": False,
    }
    return kind(**{**usual, **settings})


def run(name, directory, *, adapted=True, more=None, kind=Trainer, **settings):
    model = adapt(make(name)) if adapted else make(name)
    data = rows(name, **(more or {}))
    args = arguments(directory, Seq2SeqTrainingArguments if kind is Seq2SeqTrainer else TrainingArguments, **settings)
    trainer = kind(model=model, args=args, train_dataset=data, eval_dataset=data, data_collator=collate)
    trainer.train()
    assert np.isfinite(trainer.evaluate()["eval_loss"]), name
    return trainer, trainer.predict(data)


def checkpoints(directory):
    """Checkpoints load back, here and as the best one at the end, with a smoothed loss and tied weights."""
    names = (
        "BertForSequenceClassification",
        "BertForMaskedLM",
        "LongformerForMaskedLM",
        "LongT5ForConditionalGeneration",
    )
    for name in names:
        # smoothing takes the labels away, so the inputs of the decoder come by themselves, as from the usual collator
        more = {"decoder_input_ids": IDS.roll(1, 1)} if name.startswith("LongT5") else {}
        home = Path(directory, name)
        settings = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True}
        trainer, output = run(name, home, more=more, label_smoothing_factor=0.1, **settings)
        logits = output.predictions[0] if isinstance(output.predictions, tuple) else output.predictions
        assert logits.shape[0] == 6, name
        saved = sorted(home.glob("checkpoint-*"))
        assert saved, name
        for checkpoint in saved:
            assert (checkpoint / "config.json").is_file(), checkpoint
        best = type(make(name)).from_pretrained(trainer.state.best_model_checkpoint)
        with torch.no_grad():
            got = best(**collate(rows(name, **more))).logits
            expected = trainer.model.eval()(**collate(rows(name, **more))).logits
        assert torch.allclose(got, expected, atol=1e-6), name
        trainer.save_model(home / "final")
        assert type(best).from_pretrained(home / "final")
        if "Bert" in name:
            theirs = getattr(transformers, name).from_pretrained(home / "final").eval()
            assert torch.allclose(theirs(**collate(rows(name))).logits, expected, atol=1e-5), name


def plain(directory):
    """Without the adapter: train, evaluate and predict; a cache in the outputs, inputs that the model does not read."""
    run("DiffLlamaForCausalLM", directory, adapted=False, save_strategy="no")
    run("DiffLlamaForSequenceClassification", directory, adapted=False, save_strategy="no", gradient_checkpointing=True)
    types = {"token_type_ids": torch.zeros_like(IDS)}
    run("MegaForSequenceClassification", directory, adapted=False, more=types, save_strategy="no")
    run("LongformerForTokenClassification", directory, adapted=False, save_strategy="no", label_smoothing_factor=0.1)
    spans = {"label_names": ["start_positions", "end_positions"]}
    _, output = run("BertForQuestionAnswering", directory, adapted=False, save_strategy="no", **spans)
    assert len(output.predictions) == 2


def accumulated(directory):
    """A step over two parts of a batch, one of which has few labels, is a step over the batch: `num_items_in_batch`."""
    settings = {"optim": "sgd", "max_steps": 1, "learning_rate": 1.0, "max_grad_norm": 1e3, "save_strategy": "no"}
    for name in ("BertLMHeadModel", "RobertaForCausalLM", "DiffLlamaForCausalLM", "MegaForCausalLM"):
        labels = IDS.clone()
        labels[1, :6] = -100
        data = rows(name, labels=labels)[:2]
        results = []
        for parts in (1, 2):
            sizes = {"per_device_train_batch_size": 2 // parts, "gradient_accumulation_steps": parts}
            args = arguments(directory, **{**settings, **sizes})
            trainer = Trainer(model=make(name), args=args, train_dataset=data, data_collator=collate)
            loss = trainer.train().training_loss
            results.append((loss, trainer.model.state_dict()))
        assert abs(results[0][0] - results[1][0]) < 1e-5, (name, results[0][0], results[1][0])
        for key, value in results[0][1].items():
            assert torch.allclose(results[1][1][key], value, atol=1e-5), (name, key)


def sequences(directory):
    """Generating at evaluation, as a summariser does."""
    trainer, output = run(
        "LongT5ForConditionalGeneration",
        directory,
        kind=Seq2SeqTrainer,
        predict_with_generate=True,
        generation_max_length=5,
        generation_num_beams=2,
        save_strategy="no",
    )
    assert output.predictions.shape[0] == 6
    expected = trainer.model.generate(IDS, attention_mask=torch.ones_like(IDS), max_length=5, num_beams=2)
    width = min(expected.shape[1], output.predictions.shape[1])
    assert (output.predictions[:2, :width] == expected[:, :width].numpy()).all()


#: task -> class, text; and settings, of a call or of both
PIPELINES = {
    "feature-extraction": ("BertModel", "a b c", {}),
    "text-classification": ("BertForSequenceClassification", "a b c", {"top_k": None}),
    "token-classification": ("BertForTokenClassification", "a b c", {"aggregation_strategy": "first"}),
    "fill-mask": ("BertForMaskedLM", "a b [MASK]", {}),
    "zero-shot-classification": ("BertForSequenceClassification", "a b c", {"candidate_labels": ["b", "c"]}),
    "text-generation": ("DiffLlamaForCausalLM", "a b c", {"max_new_tokens": 3, "do_sample": False}),
    # of releases before 5
    "question-answering": ("BertForQuestionAnswering", {"question": "a b", "context": "c a b c"}, {}),
    "text2text-generation": ("LongT5ForConditionalGeneration", "a b c", {"max_new_tokens": 4}),
    "summarization": ("LongT5ForConditionalGeneration", "a b c", {"max_new_tokens": 4, "min_length": 1}),
    "translation_en_to_de": ("LongT5ForConditionalGeneration", "a b c", {"max_new_tokens": 4}),
}


def pipelines(directory):
    """Their pipelines run our models: one text, several in batches."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c"]
    (directory / "vocab.txt").write_text("\n".join(words) + "\n")
    kind = getattr(transformers, "BertTokenizerFast", None) or transformers.BertTokenizer
    tokenizer = kind.from_pretrained(directory)
    known = transformers.pipelines.PIPELINE_REGISTRY.get_supported_tasks()
    for task, (name, text, settings) in PIPELINES.items():
        if task.partition("_")[0] not in known and task not in known:
            continue
        for adapted in (True, False):
            if task == "feature-extraction" and not adapted:
                continue  # asks for outputs of its library
            ours, theirs = make(name).eval(), make(name, transformers).eval()
            results = []
            for model in (adapt(ours) if adapted else ours, theirs):
                pipe = transformers.pipeline(task, model=model, tokenizer=tokenizer, device="cpu")
                results.append([pipe(text, **settings), pipe([text] * 3, batch_size=2, **settings)])
            assert str(rounded(results[0])) == str(rounded(results[1])), (task, adapted, results)


def rounded(value):
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return round(float(value), 4) if isinstance(value, float | np.floating) else value


def pickles(_directory):
    model = adapt(make("BertForMaskedLM"))
    back = pickle.loads(pickle.dumps(model))
    assert isinstance(back, transformers.PreTrainedModel)
    assert torch.equal(back.eval()(IDS).logits, model.eval()(IDS).logits)


def main():
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    checks = {check.__name__: check for check in (sequences, checkpoints, plain, accumulated, pipelines, pickles)}
    with tempfile.TemporaryDirectory() as directory:
        for name in sys.argv[1:]:
            Path(directory, name).mkdir()
            checks[name](Path(directory, name))
            print(name, "ok", flush=True)


if __name__ == "__main__":
    main()
