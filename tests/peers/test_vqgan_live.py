"""diffusers' own VQModel beside us: golden files made again, and what we save opened by it (`make test-peers`)."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.peers

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

import vqgan_jax  # noqa: E402 (what is not installed is skipped first)
from tests.model_cards import execute  # noqa: E402

GOLDEN = Path(__file__).resolve().parent.parent / "golden"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The golden files of diffusers, made again; the others need a checkout of their peer."""
    sys.path.insert(0, str(GOLDEN))
    import make_vqgan

    make_vqgan.HERE = tmp_path_factory.mktemp("golden")
    make_vqgan.diffusers()
    return make_vqgan.HERE


@pytest.mark.parametrize("kind", ["diffusers", "amused"])
def test_the_committed_files_are_what_the_peers_make(made, kind):
    with np.load(made / kind / "outputs.npz") as fresh, np.load(GOLDEN / "vqgan" / kind / "outputs.npz") as committed:
        for name, value in fresh.items():
            np.testing.assert_allclose(value, committed[name], atol=1e-5)


@pytest.mark.parametrize("kind", ["diffusers", "amused", "taming/last.ckpt", "llamagen/vq.pt", "kandinsky", "movq"])
def test_diffusers_opens_what_is_saved_with_the_same_codes_and_pictures(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vq = vqgan_jax.load(GOLDEN / "vqgan" / kind)
    vqgan_jax.save_diffusers(vq, tmp_path / "saved")
    model = execute((tmp_path / "saved" / "README.md").read_text(), tmp_path / "saved", "diffusers")["model"].eval()
    images = np.random.default_rng(1).integers(0, 256, (2, 32, 48, 3), np.uint8)
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1)
    with torch.no_grad():
        z = model.encode(x).latents
        codes = model.quantize(z)[2][2].reshape(2, *z.shape[2:]).numpy()
        pictures = model.decode(z).sample.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(vq.encode(images), codes)
    np.testing.assert_allclose(2 * vq.decode(codes.astype(np.int32)) - 1, np.clip(pictures, -1, 1), atol=1e-4)
