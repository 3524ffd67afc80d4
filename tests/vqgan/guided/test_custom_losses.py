"""A user's own losses: the example of the docs, their names and sources in metadata and state files."""

import sys
from pathlib import Path

import numpy as np
import pytest

import clip_jax
from train_jax.errors import ConfigError, LoadError
from vqgan_jax import cli, guided
from vqgan_jax.guided import custom_losses, metadata

DOCS = Path(__file__).parents[3] / "docs" / "painting.md"
FEW = {"drawer": "pixel", "size": (16, 16), "steps": 2, "cuts": 2, "cut_min": 1.0, "rotate": 0.0, "shift": 0.0}
FEW |= {"perspective": 0.0, "jitter": 0.0, "noise": 0.0, "flip": 0.0, "progress": False}


@pytest.fixture
def module(tmp_path, monkeypatch) -> Path:
    """The module of the docs, in the working folder."""
    file = tmp_path / "my_losses.py"
    file.write_text(DOCS.read_text().partition('```python title="my_losses.py"\n')[2].partition("```")[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "my_losses", raising=False)
    return file


def brightness(images):
    return images.mean((1, 2, 3))


def test_losses_are_added_with_their_weights(clip, module, tmp_path):
    y = np.linspace(0.2, 0.7, 16, dtype=np.float32)
    start = np.broadcast_to(y[:, None, None], (16, 16, 3)).copy()
    own = {"losses": ["my_losses:horizon:2", (brightness, -0.5)], "init_image": start}
    plain = guided.paint(None, clip, "a red star", init_image=start, **FEW)
    painted = guided.paint(None, clip, "a red star", **own, **FEW, state_file=tmp_path / "s.npz")
    shown = np.round(255 * start) / 255
    expected = 2 * (shown[8:].mean() - shown[:8].mean()) - 0.5 * shown.mean()
    np.testing.assert_allclose(painted.losses[0, 0] - plain.losses[0, 0], expected, rtol=2e-3)  # pixels of half a step
    assert (painted.images[0, 8:].mean() < plain.images[0, 8:].mean()).all(), "gradients flow"
    module.write_text(module.read_text() + "\n")
    with pytest.raises(LoadError, match="files the loss my_losses:horizon is"):
        guided.paint(None, clip, "a red star", **own, **FEW, resume_from=tmp_path / "s.npz")


def test_what_is_not_a_loss(clip):
    with pytest.raises(ConfigError, match=r"of images \[2, 16, 16, 3\] it returns an array of shape \[\]"):
        guided.paint(None, clip, "a", losses=[lambda images: images.mean()], **FEW)
    with pytest.raises(ConfigError, match="losses = math:nothing: the module math has no function nothing"):
        guided.paint(None, clip, "a", losses=["math:nothing"], **FEW)
    for name in ("nowhere", "nowhere.at.all", "math"):
        with pytest.raises(ConfigError, match=f"losses = {name}:f: (there is no module {name} in Python|No module named)"):
            custom_losses.parse(f"{name}:f").hash_source()
    with pytest.raises(ConfigError, match="has no source to be hashed; define it by def in a file"):
        custom_losses.parse(np.mean.__call__).hash_source()


def test_a_picture_is_repeated_with_the_same_source_only(clip, module, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(clip_jax, "load", lambda path, dtype: clip)
    words = ["--drawer", "pixel", "--size", "16x16", "--steps", "2", "--cuts", "2", "--loss", "my_losses:horizon:2"]
    arguments = ["paint", "a star", "--clip", "c", *words, "--out", "out.png"]
    assert cli.main(arguments) == 0
    fields = metadata.read("out.png")
    assert fields["options"]["losses"] == ["my_losses:horizon:2.0"] and "the loss my_losses:horizon" in fields["files"]
    assert cli.main(["paint", "--repeat", "out.png", "--out", "again.png"]) == 0
    assert metadata.read("again.png") == fields
    assert Path("again.png").read_bytes() == Path("out.png").read_bytes()
    module.write_text("raise RuntimeError('imported')")
    del sys.modules["my_losses"]
    assert cli.main(["paint", "--repeat", "out.png", "--out", "again.png"]) == 2
    assert "out.png was painted with the loss my_losses:horizon of SHA-256" in capsys.readouterr().err
