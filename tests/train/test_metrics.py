"""The record of a run: what is written, what a resumed run keeps, what a killed process leaves readable."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tensorboardX.proto import event_pb2

from train_jax.data.errors import DataError
from train_jax.metrics import History, Writer, read


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_every_line_is_on_disk_at_once(tmp_path):
    writer = Writer(tmp_path, total_steps=10)
    writer.write(1, {"loss": np.float32(0.5), "steps": 3})
    row = lines(tmp_path)[0]
    assert row["step"] == 1 and row["loss"] == 0.5 and row["steps"] == 3 and row["time"] > 1e9
    writer.close()


def test_numbers_that_json_does_not_have(tmp_path):
    writer = Writer(tmp_path, total_steps=10)
    writer.write(1, {"a": math.nan, "b": math.inf, "c": -math.inf})
    writer.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text, "every JSON reader can read it"
    row = read(tmp_path)[0]
    assert math.isnan(row["a"]) and row["b"] == math.inf and row["c"] == -math.inf


def test_a_resumed_run_drops_what_it_will_write_again(tmp_path):
    writer = Writer(tmp_path, total_steps=10)
    for step in range(1, 6):
        writer.write(step, {"loss": step})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # the process was killed here
    writer = Writer(tmp_path, total_steps=10, start_step=3)
    writer.write(4, {"loss": 40})
    writer.close()
    assert [(row["step"], row["loss"]) for row in lines(tmp_path)] == [(1, 1), (2, 2), (3, 3), (4, 40)]


def test_an_unfinished_last_line_is_passed_over_when_reading(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read(tmp_path) == [{"step": 1, "loss": 2.0}]


@pytest.mark.parametrize("line", ['{"loss": 1.0}', "[1]", "half a li", "\xff", '{"step": "x"}', "null"])
def test_lines_that_no_run_has_written_are_named(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n', "latin-1")
    for attempt in (lambda: read(tmp_path), lambda: Writer(tmp_path, total_steps=10)):
        with pytest.raises(DataError, match=r"metrics\.jsonl, line 2 is no row of metrics"):
            attempt()


def test_only_the_active_process_writes(tmp_path):
    writer = Writer(tmp_path / "run", total_steps=10, active=False)
    writer.write(1, {"loss": 1.0})
    writer.write_images(1, {"x": np.zeros((2, 2, 3), np.uint8)})
    writer.close()
    assert not (tmp_path / "run").exists()


def test_pictures_become_files(tmp_path):
    picture = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    writer = Writer(tmp_path, total_steps=10)
    writer.write_images(7, {"val/sheet": picture})
    writer.close()
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "samples" / "00000007-val-sheet.png")), picture)


def summaries(folder):
    """Every (step, value) of a folder's TensorBoard events, by tag."""
    data = next((folder / "tensorboard").glob("events.out.tfevents*")).read_bytes()
    events, offset = {}, 0
    while offset < len(data):  # TFRecord: length, checksum, payload, checksum
        length = int.from_bytes(data[offset : offset + 8], "little")
        event = event_pb2.Event.FromString(data[offset + 12 : offset + 12 + length])
        events |= {value.tag: (event.step, value) for value in event.summary.value}
        offset += 16 + length
    return events


def test_tensorboard_gets_the_same_scalars(tmp_path):
    writer = Writer(tmp_path, total_steps=10)
    writer.write(3, {"loss": 0.25})
    writer.close()
    assert {tag: (step, value.simple_value) for tag, (step, value) in summaries(tmp_path).items()} == {"loss": (3, 0.25)}


def test_tensorboard_gets_histograms(tmp_path):
    for active in (False, True):
        writer = Writer(tmp_path, total_steps=10, active=active)
        writer.write_histogram(3, "params/w", np.array([1.0, 2.0, 6.0]))
        writer.close()
    assert [*summaries(tmp_path)] == ["params/w"]
    step, value = summaries(tmp_path)["params/w"]
    assert (step, value.histo.num, value.histo.min, value.histo.max, value.histo.sum) == (3, 3, 1.0, 6.0, 9.0)
    assert not (tmp_path / "metrics.jsonl").read_text()


def test_history_is_what_pandas_reads(tmp_path):
    history = History([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "test/top1": 0.5}])
    frame = pd.DataFrame(history)
    assert list(frame["step"]) == [1, 2, 2] and frame["loss"].min() == 1.0
    assert history.to_dict() == {"step": [1, 2, 2], "loss": [2.0, 1.0, None], "test/top1": [None, None, 0.5]}
    assert history.last("loss") == 1.0
    with pytest.raises(KeyError, match="its columns are step, loss"):
        history.last("accuracy")


def test_without_a_terminal_progress_is_plain_lines(tmp_path, capsys):
    writer = Writer(tmp_path, total_steps=10)
    speed: dict = {"loss": 0.5, "steps_per_second": 2.0, "examples_per_second": 32.0, "mfu": 0.25}
    writer.write(1, speed)  # too soon after the start for a line
    writer.write(10, speed)
    writer.close()
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    for words in ("step 10/10", "loss 0.5", "2 steps/s", "examples/s 32", "MFU 0.25", "0.0 min left"):
        assert words in printed


def test_the_last_evaluations_are_found_by_metric():
    rows = [{"test/top1": 0.1, "loss": 2.0}, {"test/top1": 0.3, "zoo/text/r1": 0.2, "zoo/r10": 0.5}, {"loss": 1.0}]
    history = History(rows)
    assert history.last_evaluations("top1", "r1", "loss") == {"test/top1": 0.3, "zoo/text/r1": 0.2}
