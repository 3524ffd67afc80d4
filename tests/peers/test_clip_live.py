"""The peers themselves, beside us: golden files made again, and what we save opened by transformers (`make test-peers`)."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.peers

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import clip_jax  # noqa: E402 (what is not installed is skipped first)
from clip_jax import verify  # noqa: E402
from tests.model_cards import execute  # noqa: E402

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
TEXTS = ["a photo of a cat.", "two dogs", "the sea at night, with many, many, many ships far away", "42"]
KINDS = ("hf-clip", "hf-clip-legacy", "hf-metaclip2", "hf-siglip")
OPEN_CLIP = ("metaclip2", "quick", "siglip2")
SAVED = ("big-vision", "hf-chinese-clip", "hf-naflex", "openai-vit", *(f"open-clip-{name}" for name in OPEN_CLIP))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The golden files of transformers, made again."""
    sys.path.insert(0, str(GOLDEN))
    import make_clip

    make_clip.OUT = tmp_path_factory.mktemp("golden")
    make_clip.hf_clip("hf-clip", None, "quick_gelu", 1)
    make_clip.hf_clip("hf-clip-legacy", 2, "gelu", 2)
    make_clip.hf_metaclip2("hf-metaclip2", 4)
    make_clip.hf_siglip("hf-siglip", 3)
    return make_clip.OUT


@pytest.mark.parametrize("kind", KINDS)
def test_the_committed_files_are_what_the_peers_make(made, kind):
    for name, value in np.load(made / kind / "expected.npz").items():
        np.testing.assert_allclose(value, np.load(GOLDEN / "clip" / kind / "expected.npz")[name], atol=1e-5)


@pytest.mark.parametrize("kind", [*KINDS, "hf-chinese-clip", "hf-naflex", "hf-siglip2"])
def test_every_layer_is_the_peers(kind):
    for row in verify.compare(GOLDEN / "clip" / kind):
        assert row.relative < 1e-5, row


@pytest.mark.parametrize("kind", [*KINDS, *SAVED])
def test_transformers_opens_what_is_saved_with_the_same_outputs(kind, tmp_path, monkeypatch):
    """Pictures and texts through transformers' own processor, tokenizer and model."""
    monkeypatch.chdir(tmp_path)
    folder = GOLDEN / "clip" / kind
    files = [file for file in (*folder.glob("*.pt"), *folder.glob("*.npz")) if file.name != "expected.npz"]
    clip = clip_jax.load(files[0] if files else folder)
    if kind == "big-vision":  # whose way to shrink pictures transformers does not have
        preprocess = dataclasses.replace(clip.preprocess, interpolation="bicubic")
        clip = clip_jax.Clip.assemble(clip.module, clip.variables, clip.tokenizer, preprocess, clip.name)
    clip_jax.save_hf(clip, tmp_path / "saved")
    opened = execute((tmp_path / "saved" / "README.md").read_text(), tmp_path / "saved", "transformers")
    model, tokenizer = opened["model"].eval(), opened["tokenizer"]
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "saved", use_fast=False)
    pictures = [clip_jax.clip.Image.open(p).convert("RGB") for p in sorted((folder / "pictures").iterdir())]
    length = clip.tokenizer.context_length
    batch = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    batch = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
    if clip.module.options.loss == "sigmoid":
        batch = {"input_ids": batch["input_ids"]}  # SigLIP sees its padding
        np.testing.assert_array_equal(batch["input_ids"], clip.tokenizer.encode(TEXTS))
    with torch.no_grad():
        out = model(**batch, **processor(pictures, return_tensors="pt"))
    np.testing.assert_allclose(clip.similarity(pictures, TEXTS), out.logits_per_image.numpy(), atol=2e-4)
    np.testing.assert_allclose(clip.encode_image(pictures), out.image_embeds.numpy(), atol=1e-5)
