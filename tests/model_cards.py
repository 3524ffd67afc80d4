"""What tests of all families check of a model card: its front matter, what it says of the run, and its code, executed."""

import json
import re
from pathlib import Path

import yaml
from PIL import Image

from tests import hub_server
from train_jax import model_card, upload


def check(text: str, run: Path | None, **front) -> None:
    """Compares a card with the files of the run, and its front matter with `front`; `run` is None where it knows of none."""
    _, head, body = text.split("---\n", 2)
    actual = yaml.safe_load(head)
    assert {name: actual.get(name) for name in front} == front
    if run is None:
        assert "metrics" not in actual and not re.search("^## (?!Use)", body, re.M)
        return
    config = json.loads((run / "config.json").read_text())
    start = json.loads((run / "environment.json").read_text())["starts"][-1]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    results = {name: value for row in rows for name, value in row.items() if name.split("/")[0] in config["evals"]}
    assert actual["metrics"] == sorted({name.rpartition("/")[2] for name in results} - {"images"}) != []
    table = dict(re.findall(r"^\| (\S+/\S+) \| (\S+) \|", body, re.M))
    assert table == {name: f"{float(value):.4g}" for name, value in results.items()}
    assert f"`{config['data']['source']}`, split `{config['data']['split']}`" in body
    assert f"after {config['steps']:,} updates" in body and f"\nsteps = {config['steps']}\n" in body
    assert all(f"{name} {version}" in body for name, version in start["versions"].items() if version)
    assert start["code"] is None or start["code"]["commit"] in body
    assert all(f"{count:,} parameters of the {player}" in body for player, count in start["parameters"].items())


def execute(text: str, folder: Path, library: str, **names) -> dict:
    """Executes the code of a card that begins with the import of a library, on a copy in `folder`. Returns its variables."""
    Image.new("RGB", (40, 30), (200, 30, 30)).save("photo.png")
    (code,) = (code for code in re.findall("```python\n(.*?)```", text, re.S) if re.match(f"(import|from) {library}", code))
    for placeholder, path in {model_card.FOLDER: folder, **names}.items():
        code = code.replace(placeholder, str(path))
    variables: dict = {}
    exec(code, variables)
    return variables


def push_and_open(run: Path, hub: hub_server.Hub, folder: Path, library: str, **names) -> dict:
    """Pushes a run directory, checks its card, and executes its code on what arrived. Returns the variables of the code."""
    upload.push(run, "org/name", licence="apache-2.0")
    folder.mkdir()
    arrived = hub.write("org/name", folder)
    assert not any("opt_state" in path.name for path in arrived.rglob("*"))
    card = (arrived / "README.md").read_text()
    check(card, run, license="apache-2.0", library_name="multimodal-jax")
    return execute(card.replace("hf:org/name", model_card.FOLDER), arrived, library, **names)
