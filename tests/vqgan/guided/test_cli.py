"""`vqgan-jax paint`, called as a user does."""

import dataclasses
import functools
import json
import re

import jax
import numpy as np
import pytest
from PIL import Image

import clip_jax
import vqgan_jax
from train_jax.pictures import draw_as_text
from vqgan_jax import cli, guided
from vqgan_jax.guided import colour, metadata
from vqgan_jax.guided.cli import request
from vqgan_jax.guided.cli.flags import to_flag

# Without augmentations programs are smaller.
NONE = {"flip": 0.0, "rotate": 0.0, "shift": 0.0, "perspective": 0.0, "jitter": 0.0, "noise": 0.0}
PLAIN = tuple(word for name in NONE for word in (f"--{name}", 0))
# One program of one step, which the tests of this folder share for prompts of two parts.
ANIMATED = ("--steps", 1, "--cuts", 8, *PLAIN)
FEW = ("--steps", 3, "--save-every", 1, "--cuts", 8, *PLAIN)
PROMPT = "a red star | noise:-0.3"
SAME = NONE | {"steps": 3, "save_every": 1, "cuts": 8}


def call(*arguments) -> int:
    return cli.main([str(a) for a in arguments])


@pytest.fixture(scope="module")
def models(vq, clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    vqgan_jax.save(vq, folder / "vqgan.safetensors")
    clip_jax.save_hf(clip, folder / "clip")
    return folder


@pytest.fixture(scope="module", autouse=True)
def _one_device(to_one_device):
    """Models are loaded once, and then moved."""
    with pytest.MonkeyPatch.context() as patch:
        for package in (vqgan_jax, clip_jax):
            load = functools.cache(lambda path, dtype, load=package.load: to_one_device(load(path, dtype=dtype)))
            patch.setattr(package, "load", lambda path, load=load, dtype="auto": load(str(path), dtype), raising=False)
        yield


@pytest.fixture
def model_flags(models):
    return ("--vqgan", models / "vqgan.safetensors", "--clip", models / "clip")


@pytest.fixture(scope="module")
def loaded(models, _one_device):
    return vqgan_jax.load(models / "vqgan.safetensors"), clip_jax.load(models / "clip")


def pixels(path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_metadata_of_a_picture_are_enough_to_paint_it_again(models, model_flags, tmp_path, capsys):
    """In the precision that they tell, too, whatever that of this machine is."""
    out = tmp_path / "out.png"
    settings = ("--seed", 7, "--lr", 0.2, "--dtype", "bfloat16")
    loaded = [
        package.load(models / name, dtype="bfloat16")
        for package, name in ((vqgan_jax, "vqgan.safetensors"), (clip_jax, "clip"))
    ]
    assert call("paint", PROMPT, *model_flags, *FEW, *settings, "--out", out, "--preview", tmp_path / "p.png") == 0
    assert "wrote" in capsys.readouterr().err
    expected = guided.paint(*loaded, PROMPT, seed=7, lr=0.2, progress=False, **SAME).images[0]
    np.testing.assert_array_equal(pixels(out), expected)
    np.testing.assert_array_equal(pixels(tmp_path / "p.png"), expected)
    about = metadata.read(out)
    assert about["prompts"] == [PROMPT] and about["seed"] == 7 and about["options"]["lr"] == 0.2
    assert about["dtype"] == "bfloat16"
    assert about["vqgan"]["sha256"] == loaded[0].fingerprint and about["clips"][0]["sha256"] == loaded[1].fingerprint
    assert call("paint", "--repeat", out, "--out", tmp_path / "again.png") == 0
    np.testing.assert_array_equal(pixels(tmp_path / "again.png"), expected)
    assert metadata.read(tmp_path / "again.png") == about


def test_lists_of_prompts_make_a_grid_and_a_folder(model_flags, loaded, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red star\n\na blue circle\n")
    folder = tmp_path / "each"
    arguments = (f"@{tmp_path / 'prompts.txt'}", *model_flags, *FEW, "--n", 2, "--seed", 5, "--folder", folder)
    assert call("paint", *arguments, "--out", tmp_path / "grid.png", "--video", tmp_path / "v.gif") == 0
    painted = guided.paint(*loaded, ["a red star", "a blue circle"], seed=5, n=2, progress=False, **SAME).images
    assert pixels(tmp_path / "grid.png").shape == (8 * 34, 8 * 34, 3)
    names = [f"{p:04d}-{i:04d}.png" for p in range(2) for i in range(2)]
    assert sorted(file.name for file in folder.iterdir()) == names
    for name, image in zip(names, painted, strict=True):
        np.testing.assert_array_equal(pixels(folder / name), image)
    about = metadata.read(folder / names[3])
    assert (about["prompts"], about["seed"], about["n"], about["only"]) == (["a red star", "a blue circle"], 5, 2, 3)
    assert call("paint", "--repeat", folder / names[3], "--out", tmp_path / "again.png") == 0
    np.testing.assert_array_equal(pixels(tmp_path / "again.png"), painted[3])
    assert metadata.read(tmp_path / "again.png") == about
    assert (tmp_path / "v.gif").stat().st_size > 0


def test_the_command_line_overrides_a_config_file(models, loaded, tmp_path):
    about = {
        "prompts": PROMPT,
        "vqgan": str(models / "vqgan.safetensors"),
        "clip": [str(models / "clip")],
        "lr": "2e-1",  # for YAML a text
        "size": "16x16",
        "seed": 1,
    } | SAME
    (tmp_path / "options.yaml").write_text(json.dumps(about))  # JSON is YAML
    assert call("paint", "--config", tmp_path / "options.yaml", "--seed", 7, "--out", tmp_path / "out.png") == 0
    expected = guided.paint(*loaded, PROMPT, seed=7, lr=0.2, progress=False, **SAME)
    np.testing.assert_array_equal(pixels(tmp_path / "out.png"), expected.images[0])


def test_a_painting_resumes_from_its_state(model_flags, tmp_path):
    state = tmp_path / "state.npz"
    few = ("--save-every", 1, "--cuts", 8, *PLAIN)
    assert call("paint", PROMPT, *model_flags, *few, "--steps", 3, "--state", state, "--out", tmp_path / "half.png") == 0
    assert call("paint", PROMPT, *model_flags, *few, "--steps", 6, "--resume", state, "--out", tmp_path / "a.png") == 0
    short = ("--dtype", "bfloat16", "--resume", state, "--out", tmp_path / "b.png")
    assert call("paint", PROMPT, *model_flags, *few, "--steps", 6, *short) == 2, "of another precision"
    assert call("paint", PROMPT, *model_flags, *few, "--steps", 6, "--out", tmp_path / "b.png") == 0
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))


def test_a_story_is_a_video(model_flags, tmp_path):
    video = tmp_path / "story.gif"
    motion = ("--frames", 2, "--blend", 1, "--frame-steps", 1, "--zoom", "1.1-0.01*t", "--fps", 10)
    out = tmp_path / "last.png"
    assert call("paint", "a star ^ a circle", *model_flags, *ANIMATED, *motion, "--video", video, "--out", out) == 0
    with Image.open(video) as image:
        assert image.n_frames == 4 and image.size == (128, 128) and image.info["duration"] == 100
    assert metadata.read(out)["motion"]["fps"] == 10
    assert call("paint", "--repeat", out, "--out", tmp_path / "again.png") == 0
    np.testing.assert_array_equal(pixels(tmp_path / "again.png"), pixels(out))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("a castle: at night",), "prompt, character 11"),
        (("a", "--out", "a.jpg"), "the image is a PNG"),
        (("a", "--video", "a.avi"), "the suffix of a video must be one of .gif, .mp4, .webm"),
        (("a", "--fps", 20), "--fps 20 applies to videos only"),
        (("a", "--quality", "superb"), "quality = 'superb'; it must be one of draft"),
        (("a", "--init-weight", 1), "init_weight = 1.0 has no effect: give init_image or init_noise"),
        (("a", "--zoom", 1.1), "--zoom applies to animations only: set the number of frames"),
        (("a", "--frames", 3, "--zoom", "1+", "--video", "a.gif"), "'1+', character 3 (at the end): this is not arithmetic"),
        (("a", "--frames", 3, "--zoom", "n", "--video", "a.gif"), "zoom = 'n' is 0 at frame 0; it must be in [0.5, 2.0]"),
        (("a ^ b",), "starts another scene"),
        (("a", "--frames", 3), "--frames creates an animation: name the video file by --video"),
        (("a", "b", "--frames", 3, "--video", "a.gif"), "an animation has one prompt"),
        (("a", "--frames", 3, "--video", "a.gif", "--state", "s.npz"), "--state applies to images"),
        (("a", "--clip-weights", "1,2"), "1 CLIP(s) need 1 number(s)"),
        (("a", "--clip-weights", "nan"), "they must be finite"),
        (("a", "--seed", -1), "seed = -1 must be an integer"),
        (("a", "--preview", "a.jpg"), "--preview a.jpg: the preview is a PNG"),
        (("a", "--frames", 3, "--blend", 0, "--video", "a.gif"), "needs two scenes or more"),
        (("--config", "three.yaml"), "clip = 3; it must be a string, or a list of strings"),
        (("--config", "word.yaml"), "word.yaml: lr = 'fast'; it must be a number"),
        (("image=nowhere.png",), "nowhere.png"),
        (("a", "--overlay", "nowhere.png"), "nowhere.png"),
        (("a", "--resume", "nowhere.npz"), "nowhere.npz"),
        (("a", "--overlay-every", 2), "overlay_every = 2 has no effect: name the picture by overlay"),
        (("a", "--overlay-alpha", 0.5), "overlay_alpha = 0.5 has no effect: give overlay_every"),
        (("a", "--overlay", "a.png", "--overlay-every", 3, "--overlay-until", 2), "overlay_until = 2 is before"),
        (("a", "--video-in", "nowhere.mp4"), "nowhere.mp4"),
        (("@nowhere.txt",), "nowhere.txt"),
        (("a", "--out", "a.png", "--init-image", "a.png"), "a.png is an input file"),
        (("a", "--out", "a.png", "--preview", "a.png"), "--out and --preview name the same file"),
        (("a", "--out", "b.png", "--folder", "b.png"), "--folder and --out name the same file"),
        (("a", "--folder", "strange.yaml"), "--folder strange.yaml: that is a file"),
        (("a", "--state", "."), "--state .: that is a folder"),
        (("@latin.txt",), "latin.txt: byte 0 is not UTF-8"),
        (("--config", "latin.txt"), "latin.txt: byte 0 is not UTF-8"),
        (("--config", "aspect.yaml"), "write it in quotes, such as '16:9'"),
        (("a", "--repeat", "a.png"), "a PROMPT would change the result"),
        (("--repeat", "nowhere.png"), "nowhere.png"),
        (("--config", "strange.yaml"), "stepz is not an option (in strange.yaml): did you mean steps"),
        ((), "a prompt is missing"),
        (("a", "--drawer", "pixel"), "the drawer pixel uses no VQGAN; leave it out"),
        (("a", "--drawer-options", "cells=3"), "drawer_options = 'cells=3' has no effect: give drawer"),
    ],
)
def test_mistakes_are_one_line(model_flags, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "strange.yaml").write_text("stepz: 3")
    (tmp_path / "three.yaml").write_text("clip: 3\nprompts: a\nvqgan: a")
    (tmp_path / "word.yaml").write_text("lr: fast")
    (tmp_path / "aspect.yaml").write_text("aspect: 16:9")
    (tmp_path / "latin.txt").write_bytes("étoile".encode("latin-1"))
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    few = () if "--repeat" in arguments else ANIMATED if "--frames" in arguments else FEW
    models = () if "--repeat" in arguments or "three.yaml" in arguments else model_flags
    assert call("paint", "--out", "out.png", *models, *few, *arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("vqgan-jax paint: error: ") and message in error


def test_a_repetition_needs_the_same_weights_and_files(model_flags, models, vq, tmp_path, capsys):
    out = tmp_path / "out.png"
    Image.fromarray(np.full((16, 16, 3), 90, np.uint8)).save(tmp_path / "start.png")
    assert call("paint", PROMPT, *model_flags, *FEW, "--init-image", tmp_path / "start.png", "--out", out) == 0
    other_weights = jax.tree.map(lambda x: 2 * np.asarray(x), vq.variables)
    vqgan_jax.save(dataclasses.replace(vq, variables=other_weights), tmp_path / "other.safetensors")
    assert call("paint", "--repeat", out, "--vqgan", tmp_path / "other.safetensors", "--out", tmp_path / "x.png") == 2
    assert "was painted with weights of SHA-256" in capsys.readouterr().err
    Image.fromarray(np.full((16, 16, 3), 91, np.uint8)).save(tmp_path / "start.png")
    assert call("paint", "--repeat", out, "--out", tmp_path / "x.png") == 2
    assert "start.png of SHA-256" in capsys.readouterr().err
    about = metadata.read(out)
    for change, message in (
        ({"options": about["options"] | {"new": 1}}, "new is not an option of this version"),
        ({"only": 1}, "metadata are damaged"),
        ({"only": 0.5}, "metadata are damaged"),
        ({"n": "x", "only": 0}, "metadata are damaged"),
        ({"vqgan": "x"}, "metadata are damaged"),
        ({"motion": None}, "metadata are damaged"),
        ({"dtype": "half"}, "metadata are damaged"),
    ):
        metadata.save(Image.new("RGB", (4, 4)), tmp_path / "odd.png", about | change)
        assert call("paint", "--repeat", tmp_path / "odd.png", "--out", tmp_path / "x.png") == 2
        assert message in capsys.readouterr().err
    metadata.save(Image.new("RGB", (4, 4)), tmp_path / "old.png", {k: v for k, v in about.items() if k != "dtype"})
    assert metadata.read(tmp_path / "old.png") == about | {"dtype": "float32"}
    # Of a version that had no priors: the group takes its defaults, which disable it.
    options = {name: value for name, value in about["options"].items() if not name.startswith("prior")}
    metadata.save(Image.new("RGB", (4, 4)), tmp_path / "old.png", about | {"options": options})
    assert request._read_painted(str(tmp_path / "old.png")) == request._read_painted(str(out))
    Image.new("RGB", (4, 4)).save(tmp_path / "plain.png")
    assert call("paint", "--repeat", tmp_path / "plain.png", "--out", tmp_path / "x.png") == 2
    assert "contains no metadata of a painting" in capsys.readouterr().err


def test_layers_make_a_transparent_picture_without_a_vqgan(models, tmp_path, capsys):
    out, video = tmp_path / "out.png", tmp_path / "v.gif"
    drawer = ("--drawer", "layers", "--drawer-options", "of=grid,count=3", "--sparsity", 0.1)
    words = (PROMPT, "--clip", models / "clip", *FEW)
    assert call("paint", *words, *drawer, "--size", "32x32", "--out", out, "--video", video, "--preview", "-") == 0
    painted = pixels(out)
    shown, last = capsys.readouterr().err, draw_as_text(colour.over_white(painted), 80)
    assert last in shown and shown.count("▀") == 3 * last.count("▀"), "the terminal shows it after each step"
    assert painted.shape == (32, 32, 4) and painted[..., 3].std() > 1
    about = metadata.read(out)
    assert about["vqgan"] is None and about["options"]["drawer_options"] == {"count": 3, "of": "grid"}
    assert call("paint", "--repeat", out, "--out", tmp_path / "again.png") == 0
    np.testing.assert_array_equal(pixels(tmp_path / "again.png"), painted)
    assert metadata.read(tmp_path / "again.png") == about
    with Image.open(video) as image:
        assert image.n_frames == 3
    (tmp_path / "o.yaml").write_text("drawer: layers\ndrawer_options: {of: grid, count: 3}\nsparsity: 0.1\nsize: 32x32")
    assert call("paint", *words, "--config", tmp_path / "o.yaml", "--n", 2, "--out", tmp_path / "two.png") == 0
    assert pixels(tmp_path / "two.png").shape == (4 * 32, 4 * (32 + 2 + 32), 3), "over white"


def test_a_video_is_painted_again(models, tmp_path, capsys):
    frames, painted, out = tmp_path / "frames", tmp_path / "painted", tmp_path / "last.png"
    frames.mkdir()
    for index, shade in enumerate((60, 160)):
        Image.new("RGB", (16, 16), (shade, 255 - shade, 90)).save(frames / f"{index}.png")
    words = (PROMPT, "--clip", models / "clip", *ANIMATED, "--drawer", "pixel", "--size", "16x16", "--frame-steps", 1)
    overlay = ("--overlay", frames / "0.png", "--overlay-every", 1, "--overlay-alpha", 0.5)
    assert call("paint", *words, *overlay, "--video-in", frames, "--video", painted, "--out", out) == 0
    np.testing.assert_array_equal(pixels(painted / "00001.png"), pixels(out))
    assert metadata.read(out)["motion"] == {"frame_steps": 1, "video_in": str(frames), "fps": 15}
    assert call("paint", "--repeat", out, "--out", tmp_path / "again.png") == 0
    np.testing.assert_array_equal(pixels(tmp_path / "again.png"), pixels(out))
    assert call("paint", "--repeat", out, "--video", painted, "--out", tmp_path / "again.png") == 2
    assert "the folder is not empty" in capsys.readouterr().err
    Image.new("RGB", (16, 16)).save(frames / "1.png")
    assert call("paint", "--repeat", out, "--out", tmp_path / "again.png") == 2
    assert "1.png of SHA-256" in capsys.readouterr().err


def test_drawers_are_listed_with_their_options(capsys):
    assert call("drawers") == 0
    text = capsys.readouterr().out
    assert "colours=  the only colours of cells; none: all colours" in text and "shape=rect  " in text
    assert text.count("--sparsity") == 7 and "of the mean opacity of the layers" in text


def test_a_palette_names_colours(model_flags, tmp_path, capsys):
    with pytest.raises(SystemExit):
        call("paint", "a", *model_flags, "--out", tmp_path / "a.png", "--palette", ",")
    assert "',' contains no name" in capsys.readouterr().err


def test_help_lists_every_option(capsys):
    with pytest.raises(SystemExit):
        call("paint", "--help")
    text = capsys.readouterr().out
    from vqgan_jax.guided.options import FIELDS

    flags = set(re.findall(r"--[a-z-]+", text))
    assert not {to_flag(name) for name in FIELDS} - flags
