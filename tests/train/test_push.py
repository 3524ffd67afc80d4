"""Uploads to a stand-in for the hub: what arrives, and what is refused before anything is sent."""

import pytest

from tests import hub_server
from train_jax import model_card, push, upload
from train_jax.errors import UserError

CARD = f"""---
license: mit
---
clip_jax.load("{model_card.FOLDER}")
AutoModel.from_pretrained("{model_card.FOLDER}")
open_clip.get_tokenizer("local-dir:{model_card.FOLDER}")
"""


@pytest.fixture
def hub(monkeypatch):
    with hub_server.serve(monkeypatch) as hub:
        yield hub


@pytest.fixture
def saved(tmp_path):
    """A folder of weights with a card."""
    folder = tmp_path / "saved"
    (folder / "decoder").mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    (folder / "decoder" / "model.safetensors").write_bytes(bytes(range(256)))
    return folder


def test_a_folder_arrives_with_a_card_that_loads_from_there(hub, saved, capsys):
    assert push.main([str(saved), "org/name"]) == 0
    assert capsys.readouterr().out == "hf:org/name\n"
    repository = hub.repositories["org/name"]
    assert repository["private"] and repository["branches"].keys() == {"main"}
    files = repository["branches"]["main"]
    assert files.keys() == {"README.md", "decoder/model.safetensors"}
    assert files["decoder/model.safetensors"] == bytes(range(256))
    assert files["README.md"].decode().splitlines()[3:] == [
        'clip_jax.load("hf:org/name")', 'AutoModel.from_pretrained("org/name")', 'open_clip.get_tokenizer("hf-hub:org/name")'
    ]  # fmt: skip
    assert (saved / "README.md").read_text() == CARD
    # Another branch of the same repository, which others may not have made public meanwhile.
    files["checkpoints/9/array"] = b"of an earlier upload"
    assert upload.push(saved, "org/name", revision="v1") == "hf:org/name@v1"
    assert repository["branches"]["v1"].keys() == {"README.md", "decoder/model.safetensors"}
    repository["private"] = False
    with pytest.raises(UserError, match=r"org/name is public already: add --public \(private=False\)"):
        upload.push(saved, "org/name")
    assert upload.push(saved, "alice/open", private=False) == "hf:alice/open"
    assert not hub.repositories["alice/open"]["private"]


def test_what_cannot_be_uploaded_is_refused_in_one_sentence_before_it_is_sent(hub, saved, tmp_path, monkeypatch, capsys):
    for name in ("name", "org/name/more", "org/na me", "org/-name", "org/a--b"):
        with pytest.raises(UserError, match="is no repository of the hub: write ORG/NAME"):
            upload.push(saved, name)
    with pytest.raises(UserError, match="revision '-x' is no name of a branch"):
        upload.push(saved, "org/name", revision="-x")
    with pytest.raises(UserError, match="state the licence at the top of its README.md"):
        upload.push(saved, "org/name", licence="mit")
    with pytest.raises(UserError, match="is no run directory of train-jax, so it has no checkpoints by step"):
        upload.push(saved, "org/name", step=3)
    with pytest.raises(UserError, match="name a run directory, or a folder of saved weights with a README.md"):
        upload.push(tmp_path, "org/name")
    with pytest.raises(UserError, match="a loaded dict cannot be uploaded: name its run directory"):
        upload.push({}, "org/name")
    assert hub.requests == []
    assert push.main([str(saved), "nobody/name"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "nobody/name cannot be written: this token is of the account alice in org" in error
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(UserError, match="refuses the token, or cannot be reached; `hf auth login` sets another token"):
        upload.push(saved, "org/name")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UserError, match="no token of the Hugging Face Hub: run `hf auth login`, or set HF_TOKEN"):
        upload.push(saved, "org/name")
    assert not hub.repositories and not any("preupload" in request for request in hub.requests)
