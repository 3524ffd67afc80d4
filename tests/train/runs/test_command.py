"""`train-jax runs` as it is typed: tables, CSV, Markdown, pages, comparisons; hostile names and files; mistakes."""

import base64
import io
import json
import re
import shlex
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from written_runs import COMMIT, config_of, seeds_and_rates, write_evaluations, write_run

from train_jax import __main__ as entry
from train_jax.runs import text


@pytest.fixture
def call(capsys):
    """`call(words) -> (exit code, standard output, standard error)`."""

    def run(*words):
        with pytest.raises(SystemExit) as exit:
            entry.cli(["runs", *map(str, words)])
        return exit.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def folder(tmp_path):
    """Six finished runs, and one each that failed, was interrupted, is damaged."""
    seeds_and_rates(tmp_path / "lr")
    for name in ("x-failed", "y-unfinished", "z-damaged"):
        write_run(tmp_path / "lr" / name, {"loss": [3]}, config_of(0.1, 0), steps=30)
    failure = {"error": "FloatingPointError: no\nsecond line", "step": 10, "time": 0}
    (tmp_path / "lr" / "x-failed" / "failure.json").write_text(json.dumps(failure))
    (tmp_path / "lr" / "z-damaged" / "config.json").write_text("{")
    return tmp_path / "lr"


def test_a_table(call, folder):
    code, output, _ = call(folder, "--metric", "test/top1")
    lines = output.splitlines()
    assert code == 0 and max(map(len, lines)) <= 120
    header = re.split(r"  +", lines[0])
    assert header[:6] == ["run", "status", "step", "optim.lr", "seed", "test/top1"] and "time" in header
    assert re.split(r"  +", lines[1])[:6] == ["lr0.1-seed0", "✓ finished", "30", "0.1", "0", "0.5"]
    assert re.split(r"  +", lines[9])[:3] == ["z-damaged", "! damaged", "10"]
    assert "✗ failed" in lines[7] and "… unfinished" in lines[8]
    assert f"in all runs: memory 3.0 MiB, parameters 100, device cpu, commit {COMMIT[:8]}, python 3.11.0" in output
    assert "✗ x-failed: FloatingPointError: no?second line" in lines and lines[-1].startswith("! z-damaged: config.json")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--sort test/top1", ["0.3-seed2", "0.1-seed2", "0.3-seed1", "0.3-seed0", "0.1-seed1", "0.1-seed0"]),
        ("--sort test/top1 --goal min", ["0.1-seed0", "0.1-seed1", "0.3-seed0", "0.3-seed1", "0.1-seed2", "0.3-seed2"]),
        ("--sort seed", ["0.1-seed0", "0.3-seed0", "0.1-seed1", "0.3-seed1", "0.1-seed2", "0.3-seed2"]),
        ("--sort loss", ["0.3-seed2", "0.1-seed2", "0.3-seed1", "0.3-seed0", "0.1-seed1", "0.1-seed0"]),
    ],
)
def test_sorting(call, tmp_path, words, expected):
    seeds_and_rates(tmp_path)
    _, output, _ = call(tmp_path, *shlex.split(words), "--csv")
    assert pd.read_csv(io.StringIO(output))["run"].tolist() == [f"lr{name}" for name in expected]


def test_csv_is_a_row_a_run_after_a_header(call, folder):
    write_run(folder / 'comma, "quote"', {"loss": [1]})
    code, output, errors = call(folder, "--csv", "--at", 10)
    frame = pd.read_csv(io.StringIO(output))
    assert code == 0 and errors == "" and len(frame) == 10 and frame["run"][0] == 'comma, "quote"'
    assert frame["loss (at 10)"].tolist() == [1] + [2] * 6 + [3] * 3
    assert frame["error"].notna().sum() == 2 and frame["path"][1] == str(folder / "lr0.1-seed0")


def test_a_summary(call, folder):
    code, output, _ = call(folder, "--metric", "test/top1", "--by", "optim.lr", "--baseline", "optim.lr=0.1")
    metric, *rows = [line.split() for line in output.splitlines()]
    assert code == 0 and metric == ["test/top1"] and rows[0][:6] == ["optim.lr", "runs", "left_out", "seeds", "mean", "low"]
    assert rows[1][:5] == ["0.1", "3", "2", "3", "0.55"] and rows[2][:5] == ["0.3", "3", "0", "3", "0.6033"]
    assert rows[2][7:9] == ["3", "0.05333"]
    _, output, _ = call(folder, "--metric=test/top1", "--by=optim.lr", "--best", "--csv")
    assert pd.read_csv(io.StringIO(output))["mean"].round(3).tolist()[:2] == [0.65, 0.703]
    _, output, _ = call(folder, "--metric=loss", "--by=optim.lr", "--at=20", "--md")
    metric, blank, header = output.splitlines()[:3]
    assert (metric, blank) == ("loss (at 20)", "") and header.startswith("| optim.lr | runs |")
    assert "| 0.3 | 3 | 0 | 3 | 1 | 1 | 1 |" in output
    code, _, errors = call(folder, "--metric=loss", "--metric=test/top1", "--by=optim.lr")
    assert code == 2 and "--by summarises one metric, and --metric names 2" in errors


def test_markdown(call, tmp_path):
    for name in ("a|b", "<script>"):
        write_run(tmp_path / name, {"loss": [1]})
    _, output, _ = call(tmp_path, "--md")
    lines = output.splitlines()
    assert lines[0].startswith("| run | status | step | loss |") and set(lines[1]) == set("| -")
    assert lines[2].startswith("| &lt;script&gt; |") and lines[3].startswith("| a\\|b |")


def test_a_comparison(call, folder):
    code, output, _ = call(folder / "lr0.1-seed0", folder / "lr0.3-seed0", "--compare")
    assert code == 0 and "optim.lr  0.1  0.3" in output and "data: no difference" in output


class Page(HTMLParser):
    def __init__(self, content):
        super().__init__()
        self.tags, self.text, self.cells = [], [], []
        self.feed(content)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)


def test_a_page(call, folder, tmp_path):
    note = '"><script>alert(2)</script>'
    hostile = write_run(folder / "<img src=x onerror=alert(1)>&amp;", {"loss": [3, 2, 1]}, {"note": note})
    (hostile / "failure.json").write_text(json.dumps({"error": "</p><script>alert(3)</script>"}))
    (hostile / "samples").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (400, 800, 3), np.uint8)
    for name in ("00000010-test-<b>", "00000030-test-<b>", "00000010-other"):
        Image.fromarray(pixels).save(hostile / "samples" / f"{name}.png")
    (hostile / "samples" / "00000030-damaged.png").write_bytes(b"PNG")
    (hostile / "samples" / "note.png").write_bytes(b"")
    file = tmp_path / "out.html"
    code, output, errors = call(folder, "--html", file, "--metric=loss", "--by=optim.lr")
    assert code == 0 and errors == f"wrote {file}\n" and output.startswith("loss\noptim.lr")
    content = file.read_text("utf-8")
    assert not re.search(r"https?:|//cdn|@import|url\(", re.sub(r"base64,[^\"]*", "", content)), "no outside address"
    page = Page(content)
    assert [tag for tag, _ in page.tags].count("script") == 1, "our own"
    assert not [attributes for _, attributes in page.tags if any(name.startswith("on") for name in attributes)]
    rows = [attributes for tag, attributes in page.tags if tag == "tr"]
    assert len(rows) == 1 + 10
    assert {"finished", "failed", "unfinished", "damaged"} <= {a.get("class") for tag, a in page.tags if tag == "td"}
    text = " ".join(page.text)
    assert "<img src=x onerror=alert(1)>&amp;" in text and "</p><script>alert(3)</script>" in text
    images = [a["src"] for tag, a in page.tags if tag == "img"]
    assert all(source.startswith("data:image/") for source in images)
    decoded = [Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) for source in images]
    assert [image.size for image in decoded[1:]] == [(320, 160)] * 2, "a plot, and the latest of each sample"
    assert "test-<b>" in text and "step 30" in text and "00000030-damaged.png cannot be read" in text
    assert len([tag for tag, _ in page.tags if tag == "polyline"]) == 7, "of runs with two rows and more"


def test_long_and_wide_names(call, tmp_path):
    names = ["x" * 100, "字" * 20, "esc\x1b[31m", "short"]
    for number, name in enumerate(names):
        write_run(tmp_path / name, {"loss": [1]}, {"source": "folder:" + "y" * number * 30})
    _, output, _ = call(tmp_path)
    lines = output.splitlines()
    assert "\x1b" not in output and "esc?[31m" in output
    starts = {text._width(line[: line.index("✓")]) for line in lines if "✓" in line}
    assert len(starts) == 1, "columns are aligned"
    assert f"{'x' * 19}…{'x' * 20} " in output


def test_columns_that_do_not_fit_are_named(call, tmp_path):
    for seed in range(2):
        names = [f"evaluation/of/something/long/{number}" for number in range(8)]
        write_run(tmp_path / str(seed), {name: [1.5, seed] for name in names}, {"seed": seed, "evals": {"evaluation": {}}})
    _, output, _ = call(tmp_path)
    lines = output.splitlines()
    assert max(map(len, lines[:3])) <= 120 and lines[0].startswith("run") and "seed" in lines[0]
    assert "not shown: " in output and "evaluation/of/something/long/7" in output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("none", "no run in none: no such directory"),
        ("{folder} --metric=lss", "no run has a metric 'lss'; did you mean loss?"),
        ("{folder} --sort=lr", "--sort 'lr' is no column of the table; it has run, "),
        ("{folder} --baseline=optim.lr=1", "--baseline without --by"),
        ("{folder} --by=optim.lr --baseline=0.1", "--baseline '0.1' must be OPTION=VALUE"),
        ("{folder} --by=optim.rate", "no run has an option 'optim.rate'; did you mean"),
        ("{folder} --best", "--best without --by"),
        ("{folder} --by=optim.lr --best --at=3", "--best and --at=3: choose one"),
        ("{folder} --compare", "--compare takes two runs, and these paths hold 9"),
        ("{folder} --html=none/out.html", "--html none/out.html: there is no folder none"),
    ],
)
def test_mistakes_are_one_line(call, folder, words, message):
    code, output, errors = call(*shlex.split(words.format(folder=folder)))
    assert (code, output) == (2, "") and errors.count("\n") == 1
    assert errors.startswith("train-jax runs: error: ") and message in errors


def test_help_names_the_command(capsys):
    with pytest.raises(SystemExit) as exit:
        entry.cli(["--help"])
    assert exit.value.code == 0 and "train-jax runs" in capsys.readouterr().out


def test_evaluations_are_metrics_of_the_run(call, tmp_path):
    """Beside those of the training, whose time they do not change."""
    run = write_run(tmp_path / "a", {"loss": [2, 1], "test/top1": [0.3, 0.4]}, {"evals": {"test": {"every": 10}}})
    write_evaluations(run / "evaluations.jsonl", ("a", "digits", {"top1": 0.25, "top1/low": 0.2, "top1/high": 0.3}))
    _, output, _ = call(run, "--csv")
    (row,) = pd.read_csv(io.StringIO(output)).to_dict("records")
    assert row["test/top1"] == 0.4 and row["test/top1 on digits:test"] == 0.25 and row["seconds"] == 40
    assert row["status"] == "finished" and "test/top1/low on digits:test" not in row
    (run / "evaluations.jsonl").write_text("{}\n")
    code, output, _ = call(run)
    assert code == 0 and "✓ finished" in output and "evaluations.jsonl cannot be read" in output


def test_a_file_of_evaluations_is_a_table_of_models(call, tmp_path):
    """Those that are runs have their options, too."""
    run = write_run(tmp_path / "run", {"loss": [2, 1]}, {"optim": {"lr": 0.1}})
    file = write_evaluations(
        tmp_path / "results.jsonl",
        (str(run), "digits", {"top1": 0.25}),
        ("hf:openai/clip", "digits", {"top1": 0.5}),
        ("hf:openai/clip", "shapes", {"top1": 0.75}),
    )
    for words in ((file,), (run, file)):
        code, output, _ = call(*words, "--csv", "--sort", "test/top1 on digits:test")
        first, second = pd.read_csv(io.StringIO(output)).to_dict("records")
        assert code == 0 and (first["run"], first["status"]) == ("clip", "evaluated")
        assert [first[f"test/top1 on {data}:test"] for data in ("digits", "shapes")] == [0.5, 0.75]
        assert (second["run"], second["status"], second["loss"]) == ("run", "finished", 1)
        assert second["test/top1 on digits:test"] == 0.25 and np.isnan(second["test/top1 on shapes:test"])
    file.write_text("{}\n")
    code, _, error = call(file)
    assert code == 2 and "results.jsonl, line 1 is no result of an evaluation" in error
