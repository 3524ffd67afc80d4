"""diffusers' own UnCLIPPipeline beside us: golden files made again, and what we save opened by it (`make test-peers`)."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.peers

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from dalle_jax.unclip.pretrained import open_checkpoint, save_karlo  # noqa: E402 (what is not installed is skipped first)
from tests.model_cards import execute  # noqa: E402

GOLDEN = Path(__file__).resolve().parent.parent / "golden"


@pytest.fixture(scope="module")
def make_unclip(tmp_path_factory):
    """The module that makes golden files, with another folder for them."""
    sys.path.insert(0, str(GOLDEN))
    import make_unclip

    make_unclip.HERE = tmp_path_factory.mktemp("golden")
    return make_unclip


def compare(fresh: Path, committed: Path) -> None:
    with np.load(fresh) as a, np.load(committed) as b:
        assert a.files == b.files
        for name in a.files:
            if a[name].dtype.kind == "f":
                np.testing.assert_allclose(a[name], b[name], atol=1e-5, err_msg=name)
            else:
                np.testing.assert_array_equal(a[name], b[name])


def test_the_committed_files_are_what_the_peers_make(make_unclip):
    make_unclip.schedulers()
    compare(make_unclip.HERE / "schedulers.npz", GOLDEN / "unclip" / "schedulers.npz")
    make_unclip.karlo()
    compare(make_unclip.HERE / "karlo" / "outputs.npz", GOLDEN / "unclip" / "karlo" / "outputs.npz")


def test_diffusers_opens_what_is_saved_with_the_same_pictures(make_unclip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_karlo(open_checkpoint(GOLDEN / "unclip" / "karlo"), tmp_path / "saved")
    pipe = execute((tmp_path / "saved" / "README.md").read_text(), tmp_path / "saved", "diffusers")["pipeline"]
    with torch.no_grad():
        made = make_unclip.outputs_of_parts(pipe) | make_unclip.pictures(pipe)
    with np.load(GOLDEN / "unclip" / "karlo" / "outputs.npz") as golden:
        for name in ("prior", "context_tokens", "decoder", "super_res_first", "super_res_last", "pipeline/images"):
            np.testing.assert_allclose(made[name], golden[name], atol=1e-5, err_msg=name)
        hidden = ~golden["text_mask"]
        np.testing.assert_allclose(made["text_embedding"], golden["text_embedding"], atol=1e-5)
        states = (np.where(hidden[..., None], 0, x["text_states"]) for x in (made, golden))
        np.testing.assert_allclose(*states, atol=1e-5)
