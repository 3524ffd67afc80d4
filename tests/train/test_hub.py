"""Names of the hub as local directories; the hub itself is a stand-in, nothing is brought from a network."""

from pathlib import Path

import pytest

import clip_jax.known_models
import dalle_jax.known_models
import vqgan_jax
import vqgan_jax.known_models
from clip_jax import cli as clip_cli
from dalle_jax import cli as dalle_cli
from train_jax.errors import LoadError
from train_jax.weights import hub
from vqgan_jax import cli as vqgan_cli

FILES, FALLBACK = ("*.json", "*.safetensors"), ("*.bin",)


@pytest.fixture
def downloads(monkeypatch, tmp_path):
    """What was asked of the hub, which brings a repository without safetensors."""
    calls = []

    def snapshot_download(repository, *, revision, allow_patterns):
        calls.append((repository, revision, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return calls


def test_a_path_is_itself(downloads):
    assert hub.resolve("some/folder", FILES) == Path("some/folder") and not downloads


def test_older_formats_are_brought_only_where_there_are_no_safetensors(downloads, tmp_path):
    assert hub.resolve("hf:org/name", FILES, FALLBACK) == tmp_path
    assert downloads == [("org/name", None, [*FILES, "artifacts.json"]), ("org/name", None, [*FILES, *FALLBACK])]
    downloads.clear()
    (tmp_path / "model.safetensors").touch()
    assert hub.resolve("hf:org/name@v1.0", FILES, FALLBACK) == tmp_path
    assert downloads == [("org/name", "v1.0", [*FILES, "artifacts.json"])]


def test_a_run_directory_is_brought_whole(downloads, tmp_path):
    (tmp_path / "artifacts.json").touch()
    assert hub.resolve("hf:org/name", FILES, FALLBACK) == tmp_path
    assert downloads == [("org/name", None, [*FILES, "artifacts.json"]), ("org/name", None, ["*"])]


@pytest.mark.parametrize("name", ["hf:clip", "hf:", "hf:/name", "hf:org/", "hf:org/name/", "hf:org/name/../other"])
def test_what_is_no_name_is_refused_before_the_hub_is_asked(name, downloads):
    with pytest.raises(LoadError, match="write hf:organisation/name"):
        hub.resolve(name, FILES)
    assert not downloads


def test_a_folder_or_a_file_of_a_repository_is_brought_alone(downloads, tmp_path):
    (tmp_path / "vqvae").mkdir()
    (tmp_path / "vqvae" / "model.safetensors").touch()
    assert hub.resolve("hf:org/name/vqvae@v1.0", FILES, FALLBACK) == tmp_path / "vqvae"
    assert hub.resolve("hf:org/name/vqvae/model.pt", FILES, FALLBACK) == tmp_path / "vqvae" / "model.pt"
    assert hub.resolve("hf:org/name/model.pt", FILES, FALLBACK) == tmp_path / "model.pt"
    assert downloads == [
        ("org/name", "v1.0", ["vqvae/*.json", "vqvae/*.safetensors", "vqvae/artifacts.json"]),
        ("org/name", None, ["vqvae/model.pt", "vqvae/*.json"]),
        ("org/name", None, ["model.pt", "*.json"]),
    ]


def test_offline_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(LoadError, match=r"copy \*.json, \*.safetensors, \*.bin of https://huggingface.co/org/name into a f"):
        hub.resolve("hf:org/name", FILES, FALLBACK)


# ---------------------------------------------------------------------------------------------------------------------
# Short names

TABLES = {"clip": clip_jax.known_models.MODELS, "vqgan": vqgan_jax.known_models.MODELS}
TABLES |= {"dalle": dalle_jax.known_models.DALLE, "unclip": dalle_jax.known_models.UNCLIP}


@pytest.mark.parametrize("family", TABLES)
def test_a_short_name_is_brought_as_its_address(family, downloads):
    for name, model in TABLES[family].items():
        assert hub.is_name(f"{family}:{name}") and model.parameters.endswith((" M", " B")) and model.licence
        assert hub.resolve(f"{family}:{name}", FILES) == hub.resolve(model.address, FILES)
        assert downloads[-1] == downloads[-2]


def test_an_unknown_short_name_lists_the_names(downloads):
    with pytest.raises(LoadError, match="dalle:maxi: no known model has this name. The names are dalle:mini$"):
        hub.resolve("dalle:maxi", FILES)
    assert not downloads and not hub.is_name("other:mini") and not hub.is_name("clip")


def test_a_short_name_that_cannot_be_brought_names_the_files_and_their_address(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    message = r"vqgan:llamagen-ds16 could not.*copy vq_ds16_c2i.pt.* of https://huggingface.co/FoundationVision/LlamaGen"
    with pytest.raises(LoadError, match=message):
        vqgan_jax.load("vqgan:llamagen-ds16")


@pytest.mark.parametrize("main, families", [(clip_cli, ["clip"]), (vqgan_cli, ["vqgan"]), (dalle_cli, ["dalle", "unclip"])])
def test_the_command_models_prints_the_tables(main, families, capsys):
    assert main.main(["models"]) == 0
    title, *lines = capsys.readouterr().out.splitlines()
    assert title.split() == ["name", "parameters", "licence", "address", "description"]
    assert [line.split()[0] for line in lines] == [f"{family}:{name}" for family in families for name in TABLES[family]]
