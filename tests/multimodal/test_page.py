"""The page as gradio serves it, without a browser: the form of every tab, and users who come at the same time."""

import json
import socket
import urllib.request
from collections import Counter

import pytest

from multimodal_jax.serve import page
from multimodal_jax.serve.device import DEVICE
from multimodal_jax.serve.tabs import TABS
from tests.multimodal.test_shared_models import together
from tests.multimodal.test_tabs import BY_TITLE, fill, use
from vqgan_jax.stage2.generator import CodeGenerator


@pytest.fixture
def address(models, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    pytest.importorskip("gradio", reason="needs gradio: make test-app")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    blocks = page.launch(models, "127.0.0.1", port)
    yield f"http://127.0.0.1:{port}"
    blocks.close()


def find_button(config: dict, title: str) -> dict:
    """The dependency of a tab's button in gradio's description of the page."""
    labels = {x["id"]: x["props"].get("value") for x in config["components"] if x["type"] == "button"}
    clicks = [x for x in config["dependencies"] if labels.get(x["targets"][0][0]) == BY_TITLE[title].button]
    assert len(clicks) == 1
    return clicks[0]


def post(address: str, button: dict, session: str, values: dict) -> None:
    """Puts a click on a button into gradio's queue."""
    tab = next(tab for tab in TABS if tab.title == values["title"])
    names = [*(name for name in tab.fields if name not in tab.advanced), *tab.advanced, *tab.needs]
    body = {"fn_index": button["id"], "session_hash": session, "data": [values[name] for name in names]}
    request = urllib.request.Request(
        f"{address}/gradio_api/queue/join", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request, timeout=60).read()


def read_last(address: str, session: str) -> list:
    """What the page shows at the end: status, probabilities, pictures, command."""
    outputs = None
    with urllib.request.urlopen(f"{address}/gradio_api/queue/data?session_hash={session}", timeout=300) as events:
        for line in events:
            if line.startswith(b"data:"):
                message = json.loads(line[5:])
                if message["msg"] == "process_completed":
                    assert message["success"], message
                    break
                if message["msg"] == "process_generating" and outputs is None:
                    outputs = message["output"]["data"]
    return message["output"]["data"] or outputs


@pytest.mark.filterwarnings("ignore")  # of gradio and what it is made of
def test_users_of_the_page_are_answered_together(models, address, monkeypatch):
    config = json.load(urllib.request.urlopen(f"{address}/config", timeout=60))
    for title, tab in BY_TITLE.items():
        assert len(find_button(config, title)["inputs"]) == len(tab.form)
    calls, draw = Counter(), CodeGenerator.draw

    def counted(*arguments, **options):
        calls["draw"] += 1
        return draw(*arguments, **options)

    monkeypatch.setattr(CodeGenerator, "draw", counted)
    users = {f"user {seed}": fill("Draw", models, seed=seed) | {"title": "Draw"} for seed in range(3)}
    with together(DEVICE, len(users)):
        for session, values in users.items():
            post(address, find_button(config, "Draw"), session.replace(" ", ""), values)
    commands = {read_last(address, session.replace(" ", ""))[3] for session in users}
    assert calls == {"draw": 1}
    assert commands == {use("Draw", models, seed=seed)[1] for seed in range(3)}
