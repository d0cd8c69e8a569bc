"""The runs behind docs/evidence.md at toy size, and what they are made of on small cases."""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.tolerances import assert_close

from examples import diff_needles, mega_speed
from examples import docstrings_longt5 as docstrings
from examples import titles_longt5 as titles


class TestNeedles:
    def test_a_window_holds_needles_and_questions(self):
        text = np.frombuffer(b"import os\nx = 1\ny = 2\nprint(x)\n", np.uint8)
        window = diff_needles.with_needles(text, 3, 2, np.random.default_rng(0)).tobytes()
        assert len(window) == len(text) + 5 * diff_needles.LINE
        lines = window.split(b"\n")
        needles = {line[1:2]: line[3:4] for line in lines if line[:1] == b"#"}
        questions = {line[1:2]: line[3:4] for line in lines if line[:1] == b"?"}
        assert len(needles) == 3
        assert len(questions) == 2
        assert questions.items() <= needles.items()
        assert window.endswith(b"\n")
        assert b"".join(line + b"\n" for line in lines if line[:1] not in (b"#", b"?", b"")) == text.tobytes()

    def test_windows_have_their_length(self):
        windows = diff_needles.Windows(np.frombuffer(b"a line\n" * 100, np.uint8), 128)
        draw = np.random.default_rng(0)
        assert windows.learnt(3, draw).shape == (3, 129)
        assert windows.asked(3, 16, draw).shape == (3, 128)
        assert windows.plain(3).shape == (3, 129)

    def test_who_copies_finds_every_needle(self):
        class Copier:
            """Knows the digit behind the key that is asked for."""

            def __call__(self, ids, use_cache):
                logits = torch.zeros(*ids.shape, 256)
                for row, one in enumerate(ids.tolist()):
                    text = bytes(one)
                    logits[row, -1, text[text.index(b"#" + text[-2:-1] + b"=") + 3]] = 1
                return type("Output", (), {"logits": logits})

        windows = diff_needles.Windows(np.frombuffer(b"a line\n" * 100, np.uint8), 128)
        assert diff_needles.found(Copier(), windows.asked(30, 4, np.random.default_rng(0))).all()

    def test_the_models_are_of_equal_size(self):
        sizes = [
            sum(
                one.numel()
                for one in diff_needles.make_model(family, width=128, layers=4, length=256, seed=0).parameters()
            )
            for family in diff_needles.FAMILIES
        ]
        assert sizes[0] == pytest.approx(sizes[1], rel=0.002)

    def test_a_run_at_toy_size(self, tmp_path):
        output = tmp_path / "results.json"
        assert diff_needles.main(["--quick", "--output", str(output)]) == 0
        results = json.loads(output.read_text())
        assert list(results["llama"]["needles"]) == ["1", "2", "4", "8", "12"]
        assert results["difference"]["bits_per_byte"]["mean"] == pytest.approx(
            results["diffllama"]["bits_per_byte"]["mean"] - results["llama"]["bits_per_byte"]["mean"], abs=1e-3
        )
        assert all(4 < results[family]["bits_per_byte"]["mean"] < 9 for family in diff_needles.FAMILIES)


class TestMegaSpeed:
    def test_the_transformer_is_as_large_as_mega(self):
        sizes = [mega_speed.size_of(mega_speed.make_model(name, 512)) for name in mega_speed.MODELS]
        assert max(sizes) / min(sizes) < 1.02

    def test_both_kinds_of_attention_are_one_transformer(self):
        ids = torch.randint(1, 256, (1, 40))
        logits = [mega_speed.make_model(name, 64).eval()(ids).logits for name in ("transformer", "transformer_fused")]
        assert_close(*logits, "float32")

    def test_a_run_at_toy_size(self, tmp_path, monkeypatch):
        monkeypatch.setattr(mega_speed, "in_a_process", lambda name, options: 1000 if name == "transformer" else 500)
        output = tmp_path / "results.json"
        assert mega_speed.main(["--quick", "--output", str(output)]) == 0
        step = json.loads(output.read_text())["step"]
        assert step["transformer"]["speed"] == 1.0
        assert step["mega"]["memory"] == 0.5
        assert step["mega"]["paper"] == {"speed": 2.9, "memory": 0.31}
        assert all(len(step[name]["processor_seconds"]) == 1 for name in mega_speed.MODELS)

    def test_memory_of_one_model(self):
        assert 2**20 < mega_speed.peak_growth("mega_chunked", 2048, 1) < 2**30


SOURCE = """'''About the module.'''
import os

LIMIT = 3

def helper(x):
    return x

class RetryPolicy(object):
    def run(self): pass
"""


class TestTitles:
    @pytest.fixture
    def files(self, tmp_path):
        """Modules of one class, of two, of none, and of one class far inside."""
        texts = {"one": SOURCE, "two": SOURCE + "class Other: pass\n", "none": "x = 1\n",
                 "deep": "y = 2\n" * 300 + "class Deep_Store:\n    pass\n"}  # fmt: skip
        for name, text in texts.items():
            (tmp_path / f"{name}.py").write_text(text)
        return sorted(tmp_path.glob("*.py"))

    def test_modules_of_one_class_are_read(self, files):
        found = {module.title: module for module in titles.modules_of("package", files, 10, 4000)}
        assert found.keys() == {"retry policy", "deep store"}
        one = found["retry policy"]
        assert one.text[one.place :].startswith("retry policy(object): ; def run(self): pass")
        assert one.text[: one.place].endswith("return x ; class ")
        assert titles.modules_of("package", files, 10, 100).pop().title == "retry policy"

    def test_pieces_hold_the_name(self, files):
        modules = titles.modules_of("package", files, 10, 4000)
        tokenizer = docstrings.train_tokenizer_of([module.text for module in modules], 300)
        titles.encode(modules, tokenizer, 4096)
        draw = np.random.default_rng(0)
        for module in modules:
            assert tokenizer.decode(module.ids[module.depth :]).strip().startswith(module.title)
            for _ in range(10):
                piece = titles.piece(module, 64, draw)
                assert len(piece) <= 64
                assert module.title in tokenizer.decode(piece)

    def test_modules_of_each_depth(self):
        modules = [titles.Module("p", str(depth), "t", 0, depth=depth) for depth in range(0, 4096, 50)]
        depths = [module.depth for module in titles.spread(modules, 2)]
        counts = np.histogram(depths, bins=(0, *titles.LENGTHS))[0]
        assert counts.tolist() == [2] * len(titles.LENGTHS)

    def test_a_run_at_toy_size(self, tmp_path, monkeypatch):
        library = Path(sysconfig.get_path("stdlib"))
        names = ("email", "http", "logging", "json", "asyncio", "ctypes")
        monkeypatch.setattr(titles, "packages", lambda: {name: sorted((library / name).glob("*.py")) for name in names})
        monkeypatch.setattr(titles, "LENGTHS", (64, 256))
        output = tmp_path / "results.json"
        assert titles.main(["--quick", "--output", str(output)]) == 0
        part = json.loads(output.read_text())["titles"]
        assert part["loss"] < 8
        assert part["held_out_modules"] > 0
        assert 0 <= part["lengths"]["256"]["rouge_l"]["mean"] <= 1
