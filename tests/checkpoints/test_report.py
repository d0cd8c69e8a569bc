"""One report, or one error that lists everything."""

import pickle

import pytest

from longspan.checkpoints.names import KeyMatch
from longspan.checkpoints.report import LoadError, LoadReport, fold_numbers
from longspan.errors import CheckpointError

MATCH = KeyMatch(
    sources={"a": "a", "b": "old.b"},
    tied={"d": "a"},
    missing=("m.weight",),
    initialised=("head.weight",),
    unexpected=("u.weight",),
    other_heads=("cls.bias",),
    ignorable=("position_ids",),
    shadowed={"gamma": "weight"},
    repeated={"decoder": "embedding"},
)


def test_report_holds_the_match():
    report = LoadReport.from_match(MATCH, [("b", (2, 3), (3, 2))])
    assert report.loaded == ("a",)
    assert report.mismatched == (("b", (2, 3), (3, 2)),)
    assert report.tied == {"d": "a"}
    assert report.ignored == {
        "cls.bias": "part of a head that this model lacks",
        "position_ids": "holds no parameter",
        "gamma": "older name of weight",
        "decoder": "tied to embedding",
    }


def test_text_lists_every_key():
    text = str(LoadReport.from_match(MATCH, [("b", (2, 3), (3, 2))]))
    for part in (
        "1 parameters loaded",
        "tied (1):\n    d = a",
        "initialised afresh (new head) (1):\n    head.weight",
        "missing from the checkpoint (1):\n    m.weight",
        "unexpected in the checkpoint (1):\n    u.weight",
        "of another shape (1):\n    b: (2, 3) in the file, (3, 2) in the model",
        "ignored, older name of weight (1):\n    gamma",
        "ignored, tied to embedding (1):\n    decoder",
    ):
        assert part in text


def test_one_error_lists_all_defects():
    report = LoadReport.from_match(MATCH, [("b", (2, 3), ())])
    with pytest.raises(CheckpointError) as caught:
        report.raise_if_broken(name="some/model")
    message = str(caught.value)
    assert message.startswith("The checkpoint some/model does not fit the model.")
    for part in ("m.weight", "u.weight", "b: (2, 3) in the file, () in the model"):
        assert part in message
    assert "strict=False" in message
    assert "ignore_mismatched_sizes=True" in message
    assert "head.weight" not in message
    assert "cls.bias" not in message
    assert caught.value.report is report


@pytest.mark.parametrize("field", ["missing", "unexpected"])
def test_strict_is_about_keys(field):
    report = LoadReport(**{field: ("x",)})
    with pytest.raises(LoadError, match=r"x\nstrict=False"):
        report.raise_if_broken(ignore_mismatched_sizes=True)
    report.raise_if_broken(strict=False)


def test_shapes_need_their_own_permission():
    report = LoadReport(mismatched=(("x", (1,), (2,)),))
    with pytest.raises(LoadError, match="ignore_mismatched_sizes=True"):
        report.raise_if_broken(strict=False)
    report.raise_if_broken(ignore_mismatched_sizes=True)


def test_heads_and_ignored_keys_are_no_defect():
    LoadReport(initialised=("head",), ignored={"x": "holds no parameter"}, tied={"a": "b"}).raise_if_broken()


def test_error_pickles_with_its_report():
    error = pickle.loads(pickle.dumps(LoadError("text", report=LoadReport(missing=("x",)))))
    assert str(error) == "text"
    assert error.report.missing == ("x",)


def test_long_lists_fold_numbers():
    keys = [f"layer.{i}.{leaf}" for i in range(12) for leaf in ("weight", "bias")]
    text = str(LoadReport(missing=(*keys, "pooler.bias")))
    assert (
        "missing from the checkpoint (25):\n    layer.{0..11}.weight\n    layer.{0..11}.bias\n    pooler.bias" in text
    )


@pytest.mark.parametrize(
    ("keys", "folded"),
    [
        (["a.0.b", "a.1.b", "a.3.b"], ["a.{0..1,3}.b"]),
        (["a.0.b.0.c", "a.0.b.1.c", "a.1.b.0.c", "a.1.b.1.c"], ["a.{0..1}.b.{0..1}.c"]),
        (["a.0.b.0.c", "a.1.b.1.c"], ["a.0.b.0.c", "a.1.b.1.c"]),
        (["a.7.b", "x"], ["a.7.b", "x"]),
        ([], []),
    ],
)
def test_fold_numbers(keys, folded):
    assert fold_numbers(keys) == folded
