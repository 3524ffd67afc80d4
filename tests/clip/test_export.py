"""Exported towers are programs of their own that give the model's embeddings, on every platform."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from jax import export

from clip_jax import cli

_RUN = """
import json, sys
import numpy as np
from jax import export
assert not any(name.startswith("clip_jax") for name in sys.modules)
folder, out = sys.argv[1:]
files = [open(f"{folder}/{name}_tower.jax_export", "rb") for name in ("image", "text")]
towers = [export.deserialize(bytearray(file.read())) for file in files]
inputs = np.load(f"{out}/inputs.npz")
np.savez(f"{out}/outputs.npz", image=towers[0].call(inputs["image"]), text=towers[1].call(inputs["text"]))
"""


@pytest.fixture(scope="module")
def exported(tiny, tmp_path_factory):
    """Made by another process: here, annotations are checked, and `int` is no symbolic batch size."""
    folder = tmp_path_factory.mktemp("export")
    words = ["-m", "clip_jax.cli", "export", tiny[1], f"--out={folder / 'towers'}"]
    subprocess.run([sys.executable, *words], check=True, cwd=Path(__file__).resolve().parents[2])
    return folder


def test_programs_run_without_this_repository_for_any_batch_size(exported, trained):
    size, texts = trained.preprocess.size, ["a red circle", "", "a star"]
    images = np.random.default_rng(0).integers(0, 256, (5, size, size, 3)).astype(np.uint8)
    ids, _ = trained.tokenizer.encode_flagged(texts)
    np.savez(exported / "inputs.npz", image=images, text=ids)
    subprocess.run([sys.executable, "-c", _RUN, exported / "towers", exported], check=True, cwd=exported)
    outputs = np.load(exported / "outputs.npz")
    np.testing.assert_allclose(outputs["image"], trained.encode_image(list(images)), atol=1e-6)
    np.testing.assert_allclose(outputs["text"], trained.encode_text(texts), atol=1e-6)


def test_programs_are_of_all_platforms_and_say_how_inputs_are_made(exported, trained):
    program = export.deserialize(bytearray((exported / "towers" / "image_tower.jax_export").read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu") and len(program.mlir_module_serialized) > 1000
    size = trained.preprocess.size
    assert [str(x) for x in program.in_avals] == [f"uint8[n,{size},{size},3]"]
    assert json.loads((exported / "towers" / "preprocess.json").read_text())["size"] == size
    assert (exported / "towers" / "tokenizer.json").read_text() == trained.tokenizer.to_json()


@pytest.mark.parametrize(
    "words, message",
    [(["--platforms=gpu"], "platforms ['gpu'] are unknown; there are cpu, cuda, tpu"), ([], "holds files already")],
)
def test_what_cannot_be_exported_is_said(exported, tiny, capsys, words, message):
    assert cli.main(["export", str(tiny[1]), f"--out={exported / 'towers'}", *words]) == 2
    assert message in capsys.readouterr().err
