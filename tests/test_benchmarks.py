"""Benchmarks as users run them: rows are stored at once and survive a cut-off, and the report merges devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(*words, **environment):
    """Runs `python -m WORDS` in the repository. Returns its result, with outputs as text."""
    command = [sys.executable, "-m", *map(str, words)]
    variables = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | environment
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=550, check=False)


def read(folder: Path) -> list[dict]:
    (file,) = folder.glob("*.json")
    return json.loads(file.read_text())["records"]


@pytest.fixture(scope="module")
def ceilings(tmp_path_factory):
    """Folder of results after two runs of the same benchmark."""
    folder = tmp_path_factory.mktemp("results")
    for commit in ("0" * 12, "1" * 12):
        done = run("benchmarks.ceilings", "--tiny", f"--results={folder}", f"--commit={commit}")
        assert done.returncode == 0, done.stderr
    return folder


def test_a_repeated_benchmark_replaces_its_rows(ceilings):
    records = read(ceilings)
    assert [(x["row"]["name"], x["row"]["settings"].get("dtype")) for x in records] == [
        ("matrix product", "bfloat16"),
        ("matrix product", "float32"),
        ("copy, read and written", None),
    ]
    for record in records:
        row, conditions = record["row"], record["run"]
        assert 0 < row["low"] <= row["value"] <= row["high"] and row["rounds"] >= 3 and row["by"] == "ours"
        assert row["settings"]["n"] == 256 and row["settings"]["toy"] == "yes"  # no published row looks like this
        assert conditions["commit"] == "1" * 12 and conditions["versions"]["jax"]


def device_file(folder: Path, device: str, rows: list[dict]) -> Path:
    """Writes a file of results by hand."""
    conditions = {"date": "2026-01-01 00:00", "commit": "abc", "versions": {"jax": "1"}}
    records = [{"benchmark": "clip", "row": row, "run": conditions} for row in rows]
    file = folder / f"{device}.json"
    file.write_text(json.dumps({"device": {"name": device, "host": "a CPU"}, "records": records}))
    return file


def test_the_report_has_devices_as_columns_and_ratios_beside_peers(tmp_path):
    row = {"name": "images", "unit": "a second", "settings": {"model": "ViT-B/32", "batch": 16}}
    peer = row | {"value": 20.0, "by": "PyTorch 2", "ratio": 1.25}
    first = device_file(tmp_path, "card", [row | {"value": 25.0, "low": 24.0, "high": 26.5, "rounds": 3}, peer])
    missing = row | {"name": "texts", "value": None, "note": "too large"}
    second = device_file(tmp_path, "chip", [row | {"value": 1234.5}, missing])
    done = run("benchmarks.report", first, second, "--output", tmp_path / "page.md")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.md").read_text()
    assert "\nWith model ViT-B/32, batch 16:\n" in page and "- card: commit abc, 2026-01-01 00:00 UTC, jax 1" in page
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert table == [
        "| measured | unit | card: ours | card: PyTorch 2 | ours / it | chip: ours |",
        "| --- | --- | --- | --- | --- | --- |",
        "| images | a second | 25 (24 to 26.5) | 20 | 1.25 | 1,234 |",
        "| texts | a second |  |  |  | too large |",
    ]


def test_the_report_refuses_another_file(tmp_path):
    (tmp_path / "other.json").write_text('{"rows": []}')
    done = run("benchmarks.report", tmp_path / "other.json", "--output", tmp_path / "page.md")
    assert done.returncode == 2 and "other.json: not a file of benchmarks.results" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "page.md").exists()


def test_an_accelerator_that_is_not_there_is_told(tmp_path):
    done = run("benchmarks.accelerator", f"--results={tmp_path}")
    assert done.returncode == 2 and "error: no accelerator here" in done.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_all_parts_of_the_accelerator_run_with_toys(tmp_path):
    done = run("benchmarks.accelerator", "--tiny", f"--results={tmp_path}")
    assert done.returncode == 0, done.stderr[-3000:]
    records = read(tmp_path)
    parts = {x["row"]["name"].partition(" ")[0]: x["row"] for x in records if x["benchmark"] == "accelerator"}
    assert all(row["value"] or "not installed" in row["note"] for row in parts.values())
    measured = {x["benchmark"] for x in records}
    assert {"ceilings", "parity", "training", "sampling", "painting_speed", "attention"} <= measured
    rows = [x["row"] for x in records]
    errors = [x["value"] for x in rows if x["name"] == "L2 error" and x["settings"]["dtype"] == "bfloat16"]
    assert errors and max(errors) < 0.02  # bfloat16 has 8 bits: 0.004
    names = {x["name"] for x in rows if x["value"]}
    assert {"best batch", "update: MFU", "kernels of an update: longest 1", "bandwidth"} <= names


@pytest.mark.slow
def test_networks_of_unclip_are_compared_with_those_of_diffusers_if_they_are_installed(tmp_path):
    done = run("benchmarks.unclip", "--tiny", "--rounds=1", f"--results={tmp_path}")
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [x["row"] for x in read(tmp_path)]
    names = {x["name"] for x in rows if x["unit"] == "steps/s" and x["by"] == "ours"}
    sampled = {f"{network}: sampling" for network in ("prior", "decoder", "upsampler")}
    assert names == sampled | {"prior: training", "decoder: training"}
    peers = [x for x in rows if x["by"] != "ours"]
    assert not peers or (len(peers) == len(names) and all(x["ratio"] > 0 for x in peers))
    assert run("benchmarks.unclip", "--narrow=3").returncode == 2


@pytest.mark.slow
def test_what_was_measured_survives_the_end_of_time(tmp_path):
    done = run("benchmarks.accelerator", "--tiny", "--minutes=0.25", f"--results={tmp_path}")
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [x["row"] for x in read(tmp_path)]
    assert [x for x in rows if x["name"] == "matrix product"]
    assert any(x.get("note", "").startswith(("cut off", "skipped: takes")) for x in rows)


def test_the_published_page_is_what_the_results_say(tmp_path):
    done = run("benchmarks.report", "--output", tmp_path / "page.md")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "page.md").read_text() == (ROOT / "docs" / "benchmarks.md").read_text(), "python -m benchmarks.report"
