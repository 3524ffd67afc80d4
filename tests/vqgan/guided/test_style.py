"""Gram matrices of a CLIP's tokens and of VGG's maps by NumPy, and paintings towards a style."""

from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image

import clip_jax
from clip_jax import model as clip_model
from clip_jax.options import CLIPOptions
from train_jax.errors import ConfigError
from vqgan_jax import cli, guided
from vqgan_jax.guided import metadata, style
from vqgan_jax.guided.options import resolve

LPIPS = Path(__file__).resolve().parents[2] / "golden" / "lpips" / "last.ckpt"
FEW = {"drawer": "pixel", "size": (16, 16), "steps": 2, "cuts": 2, "cut_min": 1.0, "rotate": 0.0, "shift": 0.0}
FEW |= {"perspective": 0.0, "jitter": 0.0, "noise": 0.0, "flip": 0.0, "progress": False}
PICTURE, STYLE = np.random.default_rng(0).integers(1, 255, (2, 16, 16, 3)).astype(np.float32) / 255


def gram(maps: np.ndarray) -> np.ndarray:
    """One product of channels at a time."""
    rows = maps.reshape(-1, maps.shape[-1]).astype(np.float64)
    return np.array([[np.mean(rows[:, i] * rows[:, j]) for j in range(rows.shape[1])] for i in range(rows.shape[1])])


def vgg_maps(weights, picture) -> list[np.ndarray]:
    """VGG16 up to relu5_3, by sums over the window."""
    x, maps = (2 * picture - 1 - [-0.030, -0.088, -0.188]) / [0.458, 0.448, 0.450], []
    for block in ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)):
        if maps:
            x = x.reshape(x.shape[0] // 2, 2, x.shape[1] // 2, 2, -1).max((1, 3))
        for layer in block:
            kernel, (h, w) = weights[str(layer)]["kernel"].astype(np.float64), x.shape[:2]
            padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
            x = sum(padded[i : i + h, j : j + w] @ kernel[i, j] for i in range(3) for j in range(3))
            x = np.maximum(x + weights[str(layer)]["bias"], 0)
        maps.append(x)
    return maps


def tokens(clip, picture) -> np.ndarray:
    """The tokens after the only block of the tests' CLIP, whose size is half of the picture's; two heads of width 4."""
    distances = np.arange(16) + 0.5 - (2 * np.arange(8) + 1)[:, None]
    weights = np.maximum(1 - np.abs(distances) / 2, 0)
    weights /= weights.sum(1, keepdims=True)
    x = np.einsum("ih,jw,hwc->ijc", weights, weights, picture)
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), clip.variables["params"]["vision"])
    block = jax.tree.map(lambda x: x[0], p["transformer"]["blocks"])

    def norm(x, params):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + clip.module.options.eps)
        return x * params["scale"] + params["bias"]

    x = (x - np.array(clip.preprocess.mean)) / np.array(clip.preprocess.std)
    patches = x.reshape(2, 4, 2, 4, 3).swapaxes(1, 2).reshape(4, 48) @ p["stem"]["kernel"].reshape(48, 8)
    x = norm(np.concatenate([p["cls"][None], patches]) + p["positions"], p["norm_pre"])
    qkv = np.einsum("td,dkhe->tkhe", norm(x, block["norm1"]), block["attention"]["qkv"]["kernel"])
    q, k, v = (qkv + block["attention"]["qkv"]["bias"]).swapaxes(0, 1)
    scores = np.exp(np.einsum("the,she->hts", q, k) / 2)
    y = np.einsum("hts,she->the", scores / scores.sum(-1, keepdims=True), v)
    x = x + np.einsum("the,hed->td", y, block["attention"]["out"]["kernel"]) + block["attention"]["out"]["bias"]
    y = norm(x, block["norm2"]) @ block["mlp_in"]["kernel"] + block["mlp_in"]["bias"]
    y = y / (1 + np.exp(-1.702 * y))  # quick GELU
    return x + y @ block["mlp_out"]["kernel"] + block["mlp_out"]["bias"]


def style_distance(maps, picture) -> float:
    """The mean over maps of the relative squared distance to the style, of functions picture -> maps."""
    pairs = [(gram(a), gram(b)) for a, b in zip(maps(picture), maps(STYLE), strict=True)]
    return np.mean([((a - b) ** 2).sum() / (b**2).sum() for a, b in pairs])


@pytest.mark.parametrize("network", ["clip", "vgg"])
def test_a_painting_takes_the_style_of_a_picture(clip, network, tmp_path):
    options = {"style": STYLE, "init_image": PICTURE} | ({} if network == "clip" else {"style_network": str(LPIPS)})
    weights = style.load_network(str(LPIPS))
    maps = (lambda x: [tokens(clip, x)]) if network == "clip" else (lambda x: vgg_maps(weights, x))
    settings = [{"style_weight": 0.0}, {"style_weight": 2.0}]
    painted = guided.paint_many(None, clip, ["a red star"], settings=settings, memory=1.0, **options, **FEW)
    plain, styled = painted.losses[0, 0]
    np.testing.assert_allclose(styled[0] - plain[0], 2 * style_distance(maps, PICTURE), rtol=1e-4)
    far, near = (style_distance(maps, image / 255.0) for image in painted.images[0, 0])
    assert near < far, "gradients flow"


def test_state_and_metadata_know_the_style(clip, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(clip_jax, "load", lambda path, dtype: clip)
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.uint8(255 * STYLE)).save("style.png")
    words = ["--drawer", "pixel", "--size", "16x16", "--steps", "2", "--cuts", "2", "--style", "style.png"]
    arguments = ["paint", "a star", "--clip", "c", *words, "--style-weight", "2", "--style-network", str(LPIPS)]
    assert cli.main([*arguments, "--out", "out.png", "--state", "s.npz"]) == 0
    assert set(metadata.read("out.png")["files"]) == {"style.png", str(LPIPS)}
    assert cli.main(["paint", "--repeat", "out.png", "--out", "again.png"]) == 0
    assert Path("again.png").read_bytes() == Path("out.png").read_bytes()
    assert cli.main([*arguments, "--out", "out.png", "--resume", "s.npz"]) == 0
    Image.fromarray(np.uint8(255 * PICTURE)).save("style.png")
    for words in (["--repeat", "out.png"], [*arguments[1:], "--resume", "s.npz"]):
        assert cli.main(["paint", *words, "--out", "again.png"]) == 2
        assert "style.png" in capsys.readouterr().err


TOWERS = [{"tower": "resnet", "heads": 8}, {"tower": "convnext"}, {"tower": "mci", "layers": (1, 1, 1, 1)}]


@pytest.mark.parametrize("tower", TOWERS)
def test_other_towers_have_maps_of_stages(tower):
    options = CLIPOptions.defaults()
    image = {"size": 32, "width": 32, "layers": (2, 1, 1, 1), "patch": None, "depth": None} | tower
    options.update({"embed_dim": 8, "text": {"context_length": 4, "width": 8, "depth": 1, "heads": 2}})
    options.image.update({name: value for name, value in image.items() if value is not None})
    module = clip_model.build(options, 16, 1)
    inputs = np.zeros((1, 32, 32, 3), np.float32), np.ones((1, 4), np.int32)
    variables = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), *inputs))
    grams = jax.eval_shape(lambda v, x: style.clip_grams(module, v, x, (0.5,) * 3, (0.5,) * 3), variables, inputs[0][0])
    widths = [32 * 2**stage * (4 if tower["tower"] == "resnet" else 1) for stage in range(4)]
    assert [gram.shape for gram in grams] == [(width, width) for width in widths]


def test_what_is_no_style(clip, tmp_path):
    for name, message in (("nowhere.npz", "style_network: .*nowhere.npz"), (str(__file__), "style_network: ")):
        with pytest.raises(ConfigError, match=message):
            style.load_network(name)
    with pytest.raises(ConfigError, match="size = 16 x 12: style_network needs sides of at least 16 pixels"):
        options = resolve({"style": STYLE, "style_network": str(LPIPS)}).style
        style.load_grams(options, (16, 12), style.load_network(str(LPIPS)), clip)
