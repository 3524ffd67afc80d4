"""Files of results: what is appended is read back, what is there is not computed again, damage is named."""

import json
import math

import pytest

from train_jax.data.errors import DataError
from train_jax.evaluation.results import FILE, EvaluationFile, read_evaluations, result_options

ROW = {
    "model": "runs/a", "model_id": "abc", "family": "clip", "step": 3, "evaluator": "test",
    "options": {"type": "zero_shot", "dtype": "float32"}, "source": "digits", "split": "test", "data_id": "def",
}  # fmt: skip


def never():
    raise AssertionError("computed again")


def test_a_result_is_computed_once(tmp_path):
    """Equal weights, evaluator, options and data are one result, whatever the model is called."""
    path = tmp_path / FILE
    row, is_new = EvaluationFile(path).evaluate(ROW, lambda: {"top1": 0.5, "loss": math.inf, "images": 3})
    assert is_new and row["metrics"] == {"top1": 0.5, "loss": math.inf, "images": 3}
    assert row["seconds"] >= 0 and {"jax", "python", "device"} <= row["versions"].keys()
    assert json.loads(path.read_text())["metrics"]["loss"] == "inf", "JSON has no infinity"
    assert read_evaluations(path) == read_evaluations(tmp_path) == [row]
    name = {"model": "copy/of/a", "step": None}
    assert EvaluationFile(path).evaluate(ROW | name, never) == (row | name, False)


@pytest.mark.parametrize("change", ["model_id", "evaluator", "options", "source", "split", "data_id"])
def test_another_model_evaluator_or_data_is_another_result(tmp_path, change):
    file = EvaluationFile(tmp_path / FILE)
    file.evaluate(ROW, lambda: {"top1": 0.5})
    _, is_new = file.evaluate(ROW | {change: {"type": "knn"} if change == "options" else "other"}, lambda: {"top1": 1.0})
    assert is_new and [row["metrics"]["top1"] for row in read_evaluations(tmp_path)] == [0.5, 1.0]


def test_again_makes_a_new_result_that_counts(tmp_path):
    EvaluationFile(tmp_path / FILE).evaluate(ROW, lambda: {"top1": 0.5})
    EvaluationFile(tmp_path / FILE, again=True).evaluate(ROW, lambda: {"top1": 0.25})
    assert len((tmp_path / FILE).read_text().splitlines()) == 2, "the old one is kept"
    assert [row["metrics"]["top1"] for row in read_evaluations(tmp_path)] == [0.25]
    assert EvaluationFile(tmp_path / FILE).evaluate(ROW, never)[0]["metrics"] == {"top1": 0.25}


def test_a_failed_evaluation_leaves_the_finished_lines(tmp_path):
    file = EvaluationFile(tmp_path / FILE)
    file.evaluate(ROW, lambda: {"top1": 0.5})
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(AssertionError):
        file.evaluate(ROW | {"evaluator": "other"}, never)
    assert (tmp_path / FILE).read_bytes() == before


def test_an_unfinished_last_line_is_replaced(tmp_path):
    """A killed process leaves one; it must not spoil the lines after it."""
    file = EvaluationFile(tmp_path / FILE)
    file.evaluate(ROW, lambda: {"top1": 0.5})
    with (tmp_path / FILE).open("ab") as stream:
        stream.write(b'{"model": "runs/b", "met')
    assert len(read_evaluations(tmp_path)) == 1
    EvaluationFile(tmp_path / FILE).evaluate(ROW | {"split": "novel"}, lambda: {"top1": 1.0})
    assert [row["split"] for row in read_evaluations(tmp_path)] == ["test", "novel"]


@pytest.mark.parametrize("line", ["no JSON", "[]", '{"model": "a"}', json.dumps(ROW), json.dumps(ROW | {"metrics": 3})])
def test_a_damaged_line_is_named(tmp_path, line):
    (tmp_path / FILE).write_text(f"{json.dumps(ROW | {'metrics': {}})}\n{line}\n")
    with pytest.raises(DataError, match=f"{FILE}, line 2 is no result of an evaluation .*remove it"):
        read_evaluations(tmp_path)


def test_no_file_has_no_results(tmp_path):
    assert read_evaluations(tmp_path) == [] == read_evaluations(tmp_path / "other.jsonl")


def test_options_of_the_schedule_are_no_part_of_a_result():
    options = {"type": "knn", "k": 20, "shots": (1, 2), "every": 5, "source": "", "split": "test", "batch_size": 8}
    assert result_options(options, "bfloat16") == {"type": "knn", "k": 20, "shots": [1, 2], "dtype": "bfloat16"}
