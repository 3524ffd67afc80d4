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

# Exports goldens, and compares the programs with the models: native images, all kinds of pooling, MCi's attention.
_EVERY_TOWER = """
import sys
from pathlib import Path
import numpy as np
from jax import export
import clip_jax
from clip_jax.export import export_towers
golden, out = map(Path, sys.argv[1:])
for name in ("hf-naflex", "open-clip-coca", "open-clip-mci", "openai-resnet/RN-tiny.pt"):
    clip, texts = clip_jax.load(golden / name), ["a cat", "two dogs"]
    pictures = sorted((golden / name.split("/")[0] / "pictures").iterdir())
    files = export_towers(clip, out / clip.fingerprint, ["cpu"])
    image, text = (export.deserialize(bytearray(file.read_bytes())) for file in files)
    inputs = clip.preprocess.batch(pictures), clip.tokenizer.encode(texts)
    np.testing.assert_allclose(image.call(inputs[0]), clip.encode_image(pictures), atol=1e-6)
    np.testing.assert_allclose(text.call(inputs[1]), clip.encode_text(texts), atol=1e-6)
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


def test_towers_of_every_kind_are_programs(tmp_path):
    """In another process, as `exported`."""
    root = Path(__file__).resolve().parents[2]
    words = [sys.executable, "-c", _EVERY_TOWER, root / "tests" / "golden" / "clip", tmp_path]
    subprocess.run(words, check=True, cwd=root)


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
