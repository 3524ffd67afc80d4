"""The search over settings, with plans that are made up."""

import itertools
import json

import pytest
from ml_collections import ConfigDict

from train_jax import config_file
from train_jax.errors import ConfigError
from train_jax.plan import command, search
from train_jax.plan.targets import Target

TOWER = {"width": 32, "depth": 1, "heads": 2}
CLIP = {
    "task": "clip_jax.task", "steps": 10, "data": {"source": "webdataset:not-there/*.tar", "batch_size": 32},
    "model": {"embed_dim": 16, "image": {"size": 16, "patch": 8, **TOWER}, "text": {"vocab_size": 640, **TOWER}},
}  # fmt: skip


@pytest.fixture
def clip_file(tmp_path, monkeypatch):
    """Config file of `CLIP`, where the devices of the target are there."""
    monkeypatch.setattr(Target, "set_environment", lambda self: None)
    file = tmp_path / "tiny.py"
    file.write_text(f"from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({CLIP!r})\n")
    return file


def needs(mesh: tuple[int, int, int], remat: str, parts: int) -> float:
    """Made-up GiB: weights over fsdp and tensor, activations over micro-batches."""
    return 6 / (mesh[1] * mesh[2]) + {"none": 8, "dots": 4, "full": 1}[remat] / parts


def takes(mesh: tuple[int, int, int], remat: str, parts: int) -> float:
    return {"none": 1.0, "dots": 1.1, "full": 1.4}[remat] + 0.1 * parts + 0.2 * mesh[1] + mesh[2]


def make_plan(words, limit: float = 4.0, clock: bool = True) -> dict:
    options = dict(word.removeprefix("--config.").split("=") for word in words if word.startswith("--config."))
    mesh = tuple(int(options[f"mesh.{axis}"]) for axis in ("data", "fsdp", "tensor"))
    rows = 32 // (mesh[0] * mesh[1])
    parts = rows // (int(options["compute.micro_batch"]) or rows)
    setting = (mesh, options["compute.remat"], parts)
    if mesh[2] == 8:
        return {"error": "ConfigError: 8 does not divide the 2 heads"}
    fits = needs(*setting) <= limit
    return {
        "mesh": {}, "fits": fits, "peak_bytes": int(2**30 * needs(*setting)), "collectives": [], "mfu": 0.1,
        "step_seconds": takes(*setting) if fits and clock else None,
    }  # fmt: skip


def test_candidates_are_all_settings_over_which_the_batch_splits():
    listed = search.list_candidates(ConfigDict(CLIP), 8)
    assert len(set(listed)) == len(listed)
    assert listed[0].mesh == (8, 1, 1) and listed[0].remat == "dots" and listed[0].parts == 1
    assert {c.mesh for c in listed} == {(8 // (f * t), f, t) for t in (1, 2, 4, 8) for f in (1, 2, 4, 8) if f * t <= 8}
    assert all(32 % (c.mesh[0] * c.mesh[1] * c.parts) == 0 for c in listed)
    assert {c.parts for c in listed if c.mesh == (8, 1, 1)} == {1, 2, 4}  # of 4 examples a device
    config = config_file.override(ConfigDict(CLIP), listed[-1].words)
    assert tuple(config.mesh.values()) == listed[-1].mesh and config.compute.remat == listed[-1].remat
    fixed = search.list_candidates(ConfigDict(CLIP | {"mesh": {"data": -1, "fsdp": 2}}), 8, ["mesh", "compute.micro_batch"])
    assert [(c.mesh, c.remat, c.parts) for c in fixed] == [((4, 2, 1), remat, 1) for remat in ("dots", "full", "none")]


def test_tasks_without_micro_batches_accumulate():
    config = ConfigDict({"task": "vqgan_jax.task", "steps": 1, "data": {"source": "shapes/32", "batch_size": 16}})
    listed = search.list_candidates(config, 8, ["mesh"])
    assert {c.words[-1] for c in listed} == {"--config.accumulate=1", "--config.accumulate=2"} and len(listed) == 2 * 3


def test_kept_micro_batches_are_counted():
    """Of 32 / 4 = 8 rows a device, at most 3 at a time are four parts; accumulation splits only over meshes that divide."""
    mesh = {"data": 4, "fsdp": 1}
    config = ConfigDict(CLIP | {"mesh": mesh, "compute": {"micro_batch": 3}})
    listed = search.list_candidates(config, 4, ["mesh", "compute.micro_batch"])
    assert [candidate.parts for candidate in listed] == [4] * 3
    assert not any("micro_batch" in word for candidate in listed for word in candidate.words)
    data = {"source": "shapes/32", "batch_size": 8}
    config = ConfigDict({"task": "vqgan_jax.task", "steps": 1, "data": data, "accumulate": 2})
    listed = search.list_candidates(config, 8, ["accumulate"])
    assert {candidate.parts for candidate in listed} == {2} and all(8 % (2 * c.mesh[0] * c.mesh[1]) == 0 for c in listed)
    assert {candidate.mesh[2] for candidate in listed} == {2, 4, 8}
    with pytest.raises(ConfigError, match="8 in 2 micro-batches cannot be split over data x fsdp = 8 x 1"):
        search.list_candidates(ConfigDict(config.to_dict() | {"mesh": {"data": 8, "fsdp": 1}}), 8, ["accumulate", "mesh"])


def test_the_fastest_that_fits_is_found(monkeypatch, capsys, clip_file):
    planned = []
    monkeypatch.setattr(search, "run_plan", lambda words: (planned.append(words), make_plan(words))[1])
    words = [f"--config={clip_file}", "--target=fake:8", "--config.data.source=a b"]
    assert command.main([*words, "--search", "--max-plans=200"]) == 0
    printed, progress = capsys.readouterr()
    every = [(c.mesh, c.remat, c.parts) for c in search.list_candidates(ConfigDict(CLIP), 8) if c.mesh[2] < 8]
    best = min((setting for setting in every if needs(*setting) <= 4), key=lambda setting: takes(*setting))
    (data, fsdp, tensor), remat, parts = best
    line = f"'--config.data.source=a b' --config.mesh.data={data} --config.mesh.fsdp={fsdp} --config.mesh.tensor={tensor} "
    line += f"--config.compute.remat={remat} --config.compute.micro_batch={0 if parts == 1 else 32 // data // fsdp // parts}"
    assert printed.splitlines()[-1] == f"train-jax --config={clip_file} {line} --workdir=DIR"
    assert "8 does not divide the 2 heads" in printed and "plan 2 of at most 200" in progress
    assert len(planned) < len(search.list_candidates(ConfigDict(CLIP), 8)), "those larger than one that does not fit"
    for skipped in set(every) - {(m, r, p) for (m, r, p) in every if any(make_key(w) == (m, r, p) for w in planned)}:
        assert needs(*skipped) > 4


def make_key(words) -> tuple:
    options = dict(word.removeprefix("--config.").split("=") for word in words if word.startswith("--config."))
    mesh = tuple(int(options[f"mesh.{axis}"]) for axis in ("data", "fsdp", "tensor"))
    rows = 32 // (mesh[0] * mesh[1])
    return mesh, options["compute.remat"], rows // (int(options["compute.micro_batch"]) or rows)


def test_without_times_memory_ranks_and_the_bound_holds(monkeypatch, capsys, clip_file):
    monkeypatch.setattr(search, "run_plan", lambda words: make_plan(words, limit=8.0, clock=False))
    words = [f"--config={clip_file}", "--target=fake:8", "--search", "--max-plans=5"]
    assert command.main([*words, "--json"]) == 0
    *rows, result = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    order = sorted((row for row in rows if row["fits"]), key=lambda row: row["peak_bytes"])
    assert result["ranked_by"] == "peak_bytes" and len(result["ranking"]) == 5
    assert result["ranking"][: len(order)] == [row["options"] for row in order]
    assert result["command"] == f"train-jax --config={clip_file} {' '.join(order[0]['options'])} --workdir=DIR"
    assert len(rows) == 5 and all(row["options"][0].startswith("--config.mesh.data=") for row in rows)
    assert command.main(words) == 0
    printed = capsys.readouterr().out
    assert "ranked by memory" in printed and "5 of " in printed
    sizes = [float(line.split()[-2]) for line in printed.splitlines()[1:6] if " yes " in line]
    assert len(sizes) > 1 and sizes == sorted(sizes)
    monkeypatch.setattr(search, "run_plan", lambda words: make_plan(words, limit=0.0))
    assert command.main(words) == 1
    capsys.readouterr()
    assert command.main([*words, "--json"]) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["command"] is None
    assert command.main([*words, "--what=encode"]) == 2


def test_a_process_that_fails_is_an_error_in_a_line():
    assert search.run_plan(["--config=no/such", "--target=fake:8"])["error"].startswith("--config=no/such: there is no")
    assert search.run_plan(["--config=no/such", "--target=fake:8"], timeout=0.01) == {"error": "not compiled in 0 s"}


@pytest.mark.parametrize("smaller, larger", [("full", "dots"), ("dots", "none")])
def test_what_needs_more_memory_is_skipped(smaller, larger):
    first = search.Candidate((8, 1, 1), smaller, 2, ())
    calls = []
    others = [first._replace(remat=larger), first._replace(parts=1), first._replace(parts=4), first._replace(mesh=(4, 2, 1))]
    plans = search.search([first, *others], lambda words: calls.append(words) or {"fits": False}, 9)
    assert [candidate for candidate, _ in plans] == [first, *others[2:]]


@pytest.mark.parametrize(
    "words, error",
    [
        (["--mesh=data=0"], "config.mesh (data=0, fsdp=1, tensor=1): sizes must be positive"),
        (["--mesh=data=3"], "config.mesh (data=3, fsdp=1, tensor=1) does not fit 8 device(s): 3 does not divide 8"),
        (["--config.mesh.data=2"], "uses 2 of 8 device(s)"),
        (["--mesh=data=8", "--config.data.batch_size=12"], "batch_size = 12 cannot be split over data x fsdp = 8 x 1"),
        (["--config.compute.micro_batch=-1"], "config.compute.micro_batch = -1; it must be 0 or more"),
        (["--max-plans=0"], "--max-plans=0; it must be at least 1"),
    ],
)
def test_mistakes_end_a_search_before_its_first_plan(clip_file, monkeypatch, capsys, words, error):
    monkeypatch.setattr(search, "run_plan", None)
    assert command.main([f"--config={clip_file}", "--target=fake:8", "--search", *words]) == 2
    assert error in capsys.readouterr().err


def test_an_interrupted_search_ranks_what_is_finished(clip_file, monkeypatch, capsys):
    plans = itertools.count()

    def run_plan(words):
        if next(plans) == 3:
            raise KeyboardInterrupt
        return make_plan(words, limit=20.0)

    monkeypatch.setattr(search, "run_plan", run_plan)
    assert command.main([f"--config={clip_file}", "--target=fake:8", "--search"]) == 130
    printed, error = capsys.readouterr()
    table, *_, best = printed.split("\n3 of ")
    assert table.count(" yes ") == 3 and f"train-jax --config={clip_file} " in best and "interrupted" in error
