"""Directions of embeddings, saved by the command and read by the CLIPs that they are of."""

import numpy as np
import pytest

import clip_jax
from train_jax.errors import ConfigError
from vqgan_jax import cli
from vqgan_jax.guided import metadata, options, targets
from vqgan_jax.guided.prompts import parse_scene


def test_a_direction_is_a_part_for_the_clips_that_it_is_of(clip, other_clip, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(clip_jax, "load", lambda path, dtype: {"a": clip, "b": other_clip}[path])
    (tmp_path / "ends.txt").write_text("a blue star\na blue circle\n")
    words = ["direction", "--from", "a red star", "a red circle", "--to", "@ends.txt", "--out", "blue.npz"]
    assert cli.main([*words, "--clip", "a"]) == 0
    scene = parse_scene("a red star | direction=blue.npz:-0.5")
    (vectors,), weights, _ = targets.embed_scenes([clip], [scene])
    red, blue = (clip.encode_text([f"a {colour} star", f"a {colour} circle"]).mean(0) for colour in ("red", "blue"))
    np.testing.assert_allclose(vectors[0, 1], (blue - red) / np.linalg.norm(blue - red), rtol=1e-5, atol=1e-6)
    assert weights.tolist() == [[1, -0.5]]
    assert metadata.hash_files(options.resolve({}), [scene]).keys() == {"blue.npz"}
    with pytest.raises(ConfigError, match="direction=blue.npz is of CLIPs of SHA-256 .*: make one for each --clip"):
        targets.embed_scenes([clip, other_clip], [scene])
    assert cli.main([*words, "--clip", "a", "--clip", "b"]) == 0
    assert len(targets.embed_scenes([clip, other_clip], [scene])[0]) == 2
    np.savez("head.npz", weight=np.zeros(8))
    with pytest.raises(ConfigError, match="direction=head.npz: it must be a file written by vqgan-jax direction"):
        targets.embed_scenes([clip], [parse_scene("direction=head.npz")])
    assert cli.main(["direction", "--from", "a", "--to", "a", "--clip", "a", "--out", "x.npz"]) == 2
    assert "embeds both lists of sentences alike" in capsys.readouterr().err
