"""A trained run, loaded: codes, images, files, the command line; the same run resumed."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

import train_jax
import vqgan_jax
from tests import model_cards
from tests.trees import count_bytes
from train_jax import run_directory
from train_jax.compute import Compute
from train_jax.data.images import BrokenSample
from vqgan_jax import cli, vqgan
from vqgan_jax import model as model_lib
from vqgan_jax.pretrained.checkpoint import abstract_variables

rng = np.random.default_rng(3)
PIXELS = rng.integers(0, 256, (3, 16, 24, 3), np.uint8)


def test_a_run_logs_its_metrics_and_reconstructions(tiny):
    history = [json.loads(line) for line in (tiny[1] / "metrics.jsonl").read_text().splitlines()]
    logged = history[2]
    expected = {
        "psnr", "usage", "perplexity", "adaptive_weight", "logits_real", "logits_fake", "loss_pixels", "loss_codebook",
        "loss_adversarial", "loss_discriminator", "gradient_share/pixels", "gradient_share/adversarial", "commitment",
        "lr/generator", "lr/discriminator",
    }  # fmt: skip
    assert expected <= logged.keys()
    assert {"test/psnr", "test/ssim", "test/usage", "test/perplexity", "oracle/same"} <= history[-1].keys()
    assert history[-1]["test/images"] == 24 and history[-1]["oracle/images"] == 10
    (sheet,) = (tiny[1] / "samples").glob("*reconstructions*")
    with Image.open(sheet) as image:
        assert image.size == (8 * 18 - 2, 2 * 18 - 2)


def test_a_resumed_run_is_that_without_interruption(tiny, tmp_path):
    """From its checkpoint of step 2, in a copy of its directory."""
    config, finished = tiny
    again = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(again / "checkpoints" / "4")
    config = ConfigDict(config.to_dict() | {"evals": {}})  # the same weights would be evaluated once more
    train_jax.run(config, again)
    complete, resumed = {}, {}
    for rows, folder in ((complete, finished), (resumed, again)):
        for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
            rows.setdefault(row["step"], {}).update(row)
    timing = ("time", "steps_per_second", "examples_per_second")
    assert complete[2] == resumed[2] and complete[3]["time"] != resumed[3]["time"]
    for step in (3, 4):
        for row in (complete[step], resumed[step]):
            for name in [*timing, *(name for name in row if name.startswith(("test/", "oracle/")))]:
                row.pop(name, None)
        assert complete[step] == resumed[step]
    weights = [run_directory.load_weights(folder, 4)[:2] for folder in (finished, again)]
    jax.tree.map(np.testing.assert_array_equal, *weights)


def test_codes_decode_to_the_reconstruction(trained):
    codes = trained.encode(PIXELS)
    assert codes.shape == (3, 8, 12) and codes.dtype == np.int32 and codes.max() < trained.num_codes
    pictures = trained.decode(codes)
    assert pictures.shape == PIXELS.shape and pictures.dtype == np.float32
    assert pictures.min() >= 0 and pictures.max() <= 1
    np.testing.assert_allclose(trained.reconstruct(PIXELS), pictures, atol=1e-6)
    np.testing.assert_array_equal(trained.encode(PIXELS.astype(np.float32) / 255), codes)
    np.testing.assert_array_equal(trained.encode(PIXELS[1:2], batch_size=1), codes[1:2])
    assert trained.encode(PIXELS[:0]).shape == (0, 8, 12)


def test_codes_are_those_nearest_to_the_averaged_encoder_s_latents(trained):
    x = PIXELS.astype(np.float32) / 127.5 - 1
    z = np.asarray(jax.jit(lambda v, x: trained.module.apply(v, x, method="latents"))(trained.variables, x))
    points = np.asarray(trained.variables["codebook"]["quantizer"]["points"])
    expected = ((z[..., None, :] - points) ** 2).sum(-1).argmin(-1)
    np.testing.assert_array_equal(trained.encode(PIXELS), expected)


def test_pictures_of_any_size_are_cropped_to_the_model_s(trained, tmp_path):
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png")
    codes = trained.encode([tmp_path / "a.png", Image.fromarray(PIXELS[0]), PIXELS[0]])
    assert codes.shape == (3, 8, 8)
    np.testing.assert_array_equal(codes[0], codes[1])
    np.testing.assert_array_equal(codes[0], codes[2])


def test_mistakes_are_named(trained, tmp_path):
    for images, words in (
        (PIXELS[:, :15], "15 x 24 pixels: both sides must be divisible by 2"),
        (PIXELS[0], r"must be \[n, H, W, 3\]"),
        (PIXELS.astype(np.int32), "not int32"),
        (PIXELS.astype(np.float32), r"must be in \[0, 1\]; these range from"),
    ):
        with pytest.raises(ValueError, match=words):
            trained.encode(images)
    with pytest.raises(ValueError, match="this model has 0 to 15"):
        trained.decode(np.full((1, 2, 2), 16, np.int32))
    with pytest.raises(BrokenSample):
        trained.encode([tmp_path / "missing.png"])


def test_an_ema_codebook_is_saved_as_its_points(trained, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vqgan_jax.save_diffusers(trained, tmp_path / "out", licence="mit")
    card = (tmp_path / "out" / "README.md").read_text()
    model_cards.check(card, tiny[1], library_name="diffusers", license="mit", tags=["jax", "vqgan"])
    again = model_cards.execute(card, tmp_path / "out", "vqgan_jax")["vq"]
    np.testing.assert_array_equal(again.encode(PIXELS), trained.encode(PIXELS))
    np.testing.assert_allclose(again.reconstruct(PIXELS), trained.reconstruct(PIXELS), atol=1e-5)
    assert again.fingerprint != trained.fingerprint


def test_runs_of_other_tasks_are_refused(tiny, tmp_path):
    text = (tiny[1] / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace("vqgan_jax.task", "clip_jax.task"))
    with pytest.raises(vqgan_jax.LoadError, match="is a run of 'clip_jax.task', not of a VQGAN"):
        vqgan_jax.load(tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# The command line


load_once = functools.cache(vqgan.load)


@pytest.fixture
def run(capsys, monkeypatch):
    """`run(*arguments) -> (exit code, output, errors)`; a model is loaded once."""
    monkeypatch.setattr(vqgan, "load", load_once)

    def call(*arguments):
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "photos"
    (tmp_path / "elsewhere").mkdir()
    folder.mkdir()
    (folder / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "circle").symlink_to(folder)
    for i, name in enumerate(("a.png", "b.jpg", "more/c.png")):
        Image.fromarray(rng.integers(0, 256, (20 + i, 30, 3), np.uint8)).save(folder / name)
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def test_reconstruct_writes_a_sheet(run, tiny, folder, tmp_path):
    code, out, error = run(
        "reconstruct", *sorted(folder.glob("*.*")), "--model", tiny[1], "--out", tmp_path / "sheet.png"
    )
    assert code == 2 and "skipped" in error and "broken.png" in error
    assert [line.split()[1] for line in out.splitlines()] == ["dB", "dB"]
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (8 * 34, 8 * 34)
    code, _, error = run("reconstruct", folder / "a.png", "--model", tiny[1], "--out", tmp_path / "sheet.jpg")
    assert code == 2 and "the sheet is a PNG" in error and "Traceback" not in error


def test_reconstructions_in_a_folder_are_computed_once(run, tiny, trained, folder, tmp_path):
    files, out = [folder / "a.png", folder / "b.jpg"], tmp_path / "reconstructed"
    arguments = ("reconstruct", *files, "--model", tiny[1], "--folder", out)
    assert run(*arguments)[0] == 0
    expected = np.round(255 * trained.reconstruct(files)).astype(np.uint8)
    for name, image in zip(("a.png", "b.png"), expected, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(out / name)), image)
    (out / "b.png").unlink()
    code, printed, _ = run(*arguments)
    assert code == 0 and [line.split()[-1] for line in printed.splitlines()] == [str(folder / "b.jpg")]
    changed = tmp_path / "changed"
    changed.mkdir()
    Image.new("RGB", (20, 20)).save(changed / "a.png")
    code, _, error = run("reconstruct", changed / "a.png", "--model", tiny[1], "--folder", out)
    assert code == 2 and "a.png was written by another command" in error, "of another image"
    sheet = ("--out", tmp_path / "sheet.png")
    code, _, error = run("reconstruct", changed / "a.png", "--model", tiny[1], "--folder", changed, *sheet)
    assert code == 2 and "a.png was written by another command" in error, "an image of the user's"
    with Image.open(changed / "a.png") as image:
        assert image.size == (20, 20)
    assert run(*arguments, *sheet)[0] == 0 and (tmp_path / "sheet.png").is_file()
    code, _, error = run("reconstruct", *files, "--model", tiny[1])
    assert code == 2 and "name --out FILE for the sheet" in error


def test_encode_and_decode_a_folder(run, tiny, trained, folder, tmp_path):
    code, out, error = run("encode", folder, "--model", tiny[1], "--out", tmp_path / "codes.npz")
    assert code == 2 and "3 image(s), 8 x 8 codes each" in out and "broken.png" in error
    with np.load(tmp_path / "codes.npz") as file:
        assert file["paths"].tolist() == ["a.png", "b.jpg", "more/c.png"]
        np.testing.assert_array_equal(file["codes"][0], trained.encode([folder / "a.png"])[0])
        content = dict(file)
    code, out, _ = run("decode", tmp_path / "codes.npz", "--model", tiny[1], "--out", tmp_path / "out")
    assert code == 0 and "wrote 3 image(s)" in out
    with Image.open(tmp_path / "out" / "more" / "c.png") as picture:
        expected = np.round(255 * trained.decode(content["codes"][2:]))[0]
        np.testing.assert_array_equal(np.asarray(picture), expected)
    time = (tmp_path / "out" / "b.png").stat().st_mtime_ns
    (tmp_path / "out" / "a.png").unlink()
    assert run("decode", tmp_path / "codes.npz", "--model", tiny[1], "--out", tmp_path / "out")[0] == 0
    assert (tmp_path / "out" / "b.png").stat().st_mtime_ns == time, "what is there already is not decoded again"
    for changes, words in (
        ({"fingerprint": "0123"}, "made by a model of fingerprint 0123"),
        ({"paths": np.array(["../a", "b", "c"])}, "leads out of"),
        ({"paths": np.array(["a", ".", "c"])}, "leads out of"),
        ({"paths": np.array(["a", "b", "a"])}, "the path 'a' occurs twice"),
        ({"paths": np.array(["a", "b", "./a"])}, "the path './a' occurs twice"),
        ({"paths": np.array(["a", "b"])}, "paths <U1 [2]"),
        ({"codes": content["codes"][0]}, "codes int32 [8, 8]"),
        ({"codes": content["codes"] + 0.5}, "codes float64"),
        ({"codes": content["codes"] - 10_000}, "has 0 to 15"),
    ):
        np.savez(tmp_path / "other.npz", **(content | changes))
        code, _, error = run("decode", tmp_path / "other.npz", "--model", tiny[1], "--out", tmp_path / "out")
        assert code == 2 and words in error
    assert not list((tmp_path / "out").glob("**/*.png.png")) and len(list((tmp_path / "out").glob("**/*.png"))) == 3
    np.savez(tmp_path / "other.npz", codes=content["codes"])
    code, _, error = run("decode", tmp_path / "other.npz", "--model", tiny[1], "--out", tmp_path / "out")
    assert code == 2 and "holds no codes" in error


def test_pictures_that_differ_in_their_suffix_alone_are_all_written(run, tiny, folder, tmp_path):
    both = tmp_path / "both"
    both.mkdir()
    (tmp_path / "outside").mkdir()
    (both / "linked").symlink_to(tmp_path / "outside")
    for i, name in enumerate(("a.png", "a.jpg", "linked/b.jpg")):
        Image.new("RGB", (20, 20), (80 * i, 0, 0)).save(both / name)
    assert run("encode", both, "--model", tiny[1], "--out", tmp_path / "codes.npz")[0] == 0
    code, out, _ = run("decode", tmp_path / "codes.npz", "--model", tiny[1], "--out", tmp_path / "out")
    assert code == 0 and "wrote 3 image(s)" in out
    names = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").glob("**/*.png"))
    assert names == ["a.jpg.png", "a.png.png", "linked/b.jpg.png"]


def test_mistakes_on_the_command_line_are_one_line(run, tiny, folder, tmp_path):
    (tmp_path / "empty").mkdir()
    for arguments, words in (
        (("encode", tmp_path / "none", "--model", tiny[1], "--out", tmp_path / "x"), "no such folder"),
        (("encode", tmp_path / "empty", "--model", tiny[1], "--out", tmp_path / "x"), "no images"),
        (("encode", folder, "--model", tmp_path / "empty", "--out", tmp_path / "x"), "is not a VQGAN"),
        (("reconstruct", folder / "broken.png", "--model", tiny[1], "--out", tmp_path / "x.png"), "no image can be"),
        # Places to write are looked at first: there is no model called "none".
        (("encode", folder, "--model", "none", "--out", tmp_path / "no" / "x.npz"), "there is no folder"),
        (("encode", folder, "--model", "none", "--out", tmp_path), "that is a folder; name a file"),
        (
            ("reconstruct", folder / "a.png", "--model", "none", "--out", tmp_path / "no" / "x.png"),
            "there is no folder",
        ),
        (("sample", "--model", "none", "--out", tmp_path / "no" / "x.png"), "there is no folder"),
        (("decode", "none.npz", "--model", "none", "--out", folder / "a.png"), "that is a file; name a folder"),
        (("decode", folder / "a.png", "--model", "none", "--out", tmp_path / "out"), "holds no codes"),
    ):
        code, _, error = run(*arguments)
        assert code == 2 and words in error.splitlines()[-1] and "Traceback" not in error
    code, out, _ = run("--help")
    assert code == 0 and "vqgan-jax reconstruct" in out


@pytest.mark.parametrize("kind", ["nearest", "gumbel", "dvae"])
def test_in_bfloat16_a_model_is_that_of_float32_and_its_kernels_are_half(kind, tmp_path):
    options = model_lib.VQGANOptions.defaults()
    small = {"channels": 16, "multipliers": (1, 2), "blocks": 1, "resolution": 16, "attention": (), "groups": 4}
    options.update(small | {"z_channels": 8})
    options.quantizer.update({"type": "nearest" if kind == "dvae" else kind, "size": 32, "dim": 4})
    options.architecture = "dvae" if kind == "dvae" else "vqgan"
    rng = np.random.default_rng(0)

    def draw(path, x):
        if path[-1].key in ("scale", "bias"):
            return np.full(x.shape, float(path[-1].key == "scale"), np.float32)
        deviation = np.prod(x.shape[:-1]) ** -0.5 if path[-1].key == "kernel" else 1
        return (deviation * rng.standard_normal(x.shape)).astype(np.float32)

    variables = jax.tree_util.tree_map_with_path(draw, abstract_variables(model_lib.build(options)))
    exact, short = (vqgan.Vqgan.assemble(options, variables, "drawn", dtype=d) for d in ("float32", "bfloat16"))
    assert exact.fingerprint == short.fingerprint and short.compute.dtype == "bfloat16"
    trained = vqgan.Vqgan.assemble(options, variables, "drawn", Compute(remat="full"))
    assert trained.compute.remat == "none" and trained.module == exact.module, "rematerialisation is of the training"
    images = rng.integers(0, 256, (8, 16, 16, 3), np.uint8)
    codes = exact.encode(images)
    assert np.mean(short.encode(images) == codes) > 0.8, "a latent between two codes may fall to the other side"
    pixels, short_pixels = exact.decode(codes), short.decode(codes)
    assert pixels.std() > 0.03 and short_pixels.dtype == np.float32
    assert 0 < np.sqrt(np.mean((short_pixels - pixels) ** 2)) < 10 * 2**-9
    for path, x in jax.tree_util.tree_leaves_with_path(short.variables):
        names = [key.key for key in path]
        assert x.dtype == ("bfloat16" if names[-1] == "kernel" and "quantizer" not in names else "float32")
    halved = sum(x.size for p, x in jax.tree_util.tree_leaves_with_path(short.variables) if x.dtype == "bfloat16")
    assert count_bytes(short.variables) == count_bytes(exact.variables) - 2 * halved < 0.6 * count_bytes(exact.variables)
    with pytest.raises(ValueError, match='rounded to bfloat16 .* load the model with dtype="float32"'):
        vqgan.save(short, tmp_path / "x.safetensors")
    vqgan.save(exact, tmp_path / "x.safetensors")
    precisions = [vqgan.load(tmp_path / "x.safetensors", dtype=d).compute.dtype for d in ("auto", "bfloat16", None)]
    assert precisions == ["float32", "bfloat16", "float32"], "on a CPU"
