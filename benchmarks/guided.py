"""Compares guided painting with a textbook loop in PyTorch: VQGAN f16, CLIP ViT-B/32, the same weights and cuts.

    python -m benchmarks.guided [--size 256 512] [--cuts 32] [--rounds 3]       (with the `peers` extra; else ours only)
    python -m benchmarks.guided --size 256 --together 0 --drawers pixel grid fourier    (without the VQGAN)

Measures steps per second, and the peak memory of a turn in a separate process, without the memory held before (mainly
weights). On a GPU the peak is of GPU memory, otherwise of resident memory as Linux reports, which includes freed memory that
was not returned. Then compares eight prompts in one batch with eight runs in sequence. Weights are random, which does
not affect speed. On a GPU both use TF32 for float32 products, which is JAX's default.
"""

import argparse
import functools
import itertools
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np

import clip_jax
import vqgan_jax
from benchmarks import load_config
from benchmarks.command import main, positive
from benchmarks.peers import name_peer, skipped_if_missing
from benchmarks.results import OURS, Row
from benchmarks.timing import compare_rates, time_in_turns
from clip_jax import model as clip_model
from clip_jax.options import CLIPCompute
from clip_jax.pretrained import checkpoint as clip_checkpoint
from train_jax import config as config_lib
from train_jax.data.images import Preprocess
from train_jax.data.text import Tokenizer
from train_jax.weights.layout import flatten, to_peer
from vqgan_jax import model as vqgan_model
from vqgan_jax.guided import colour, painting, prompts, starts
from vqgan_jax.guided import options as options_lib
from vqgan_jax.guided.drawers.drawer import Context
from vqgan_jax.guided.drawers.grid import cell_map
from vqgan_jax.placeholders import random_weights
from vqgan_jax.pretrained import checkpoint as vqgan_checkpoint
from vqgan_jax.pretrained import taming

PROMPTS = [f"a {colour} {thing}" for colour in ("red", "blue") for thing in ("castle", "star", "tree", "house")]
# Augmentations of the textbook loop: random crops, flips and noise only.
PLAIN = {"rotate": 0.0, "shift": 0.0, "perspective": 0.0, "jitter": 0.0}
LR = 0.1
PYTORCH = "PyTorch"
VQGAN, DRAWERS = "vqgan", ("pixel", "grid", "fourier")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=positive, nargs="+", default=[256, 512], help="sides of the images in pixels")
    parser.add_argument("--cuts", type=positive, default=32)
    parser.add_argument("--steps", type=positive, default=5, help="number of steps per turn")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="dtype of our implementation")
    parser.add_argument("--together", type=int, default=len(PROMPTS), help="prompts in a batch; 0: no comparison")
    parser.add_argument("--drawers", nargs="+", choices=(VQGAN, *DRAWERS), default=(VQGAN,), help="what is optimised")
    parser.add_argument("--tiny", action="store_true", help="use toy models, to test the benchmark")
    parser.add_argument("--peak", choices=(OURS, PYTORCH), help=argparse.SUPPRESS)  # measured by this process


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    vq, clip = build_models(arguments.dtype, arguments.tiny)
    if arguments.peak:
        run = build_implementation(arguments.peak, vq, clip, arguments, arguments.size[0])
        print(f"peak {measure_peak(arguments.peak, run)}")
        return
    settings = {"models": "f16, ViT-B/32", "cuts": arguments.cuts, "dtype": arguments.dtype}
    for size in arguments.size if VQGAN in arguments.drawers else ():
        runs, names = {OURS: build_implementation(OURS, vq, clip, arguments, size)}, {OURS: OURS}
        with skipped_if_missing():
            import torch

            names[name_peer(PYTORCH, torch)] = PYTORCH
            runs[name_peer(PYTORCH, torch)] = build_implementation(PYTORCH, vq, clip, arguments, size)
        seconds = time_in_turns(runs, arguments.rounds)
        yield from compare_rates("steps", seconds, arguments.steps, "steps/s", settings | {"pixels": size})
        for by in runs:
            peak = measure_peak_in_subprocess(names[by], arguments, size)
            yield Row("peak memory of a turn", peak, "MiB", settings | {"pixels": size}, by=by)
    for size, name in itertools.product(arguments.size, [name for name in DRAWERS if name in arguments.drawers]):
        painter = painting.Painter(None, clip, make_jobs(arguments, size, PROMPTS[:1], name))
        runs = {OURS: make_turn(painter, arguments.steps)}
        with skipped_if_missing():
            import torch

            runs[name_peer(PYTORCH, torch)] = build_drawer_loop(name, clip, arguments, size)
        seconds = time_in_turns(runs, arguments.rounds)
        drawn = settings | {"models": f"{name}, ViT-B/32", "pixels": size}
        yield from compare_rates("steps", seconds, arguments.steps, "steps/s", drawn)
    if arguments.together:
        seconds = compare_batching(vq, clip, arguments)
        settings |= {"pixels": arguments.size[0], "prompts": arguments.together}
        yield from compare_rates("steps of all prompts", seconds, arguments.together * arguments.steps, "steps/s", settings)


def build_models(dtype: str, tiny: bool) -> tuple["vqgan_jax.Vqgan", "clip_jax.Clip"]:
    """Builds VQGAN and CLIP with random weights at published sizes."""
    c = config_lib.resolve(load_config("vqgan/f16_1024"))
    v = config_lib.resolve(load_config("clip/vit_b32")).model
    v.update({"activation": "quick_gelu"})
    v.text.vocab_size = 0
    if tiny:
        c.model.channels, c.model.z_channels = 32, 32
        v.image.update({"width": 64, "depth": 1, "heads": 2})
    v.text.update({"width": 64, "depth": 1, "heads": 2})  # the text tower runs only once, before the first step
    compute = CLIPCompute(dtype=dtype, scan=False)
    weights = random_weights(vqgan_checkpoint.abstract_variables(vqgan_model.build(c.model, compute)))
    vq = vqgan_jax.Vqgan.assemble(c.model, weights, "random", compute)
    tokenizer = Tokenizer.train(PROMPTS, 600, v.text.context_length)
    tower = clip_model.build(v, tokenizer.vocab_size, tokenizer.eos_id, compute)
    weights = random_weights(clip_checkpoint.abstract_variables(tower))
    return vq, clip_jax.Clip.assemble(tower, weights, tokenizer, Preprocess(v.image.size), "random")


def build_implementation(name: str, vq, clip, arguments, size: int) -> Callable[[], None]:
    """Builds a function that runs the steps of one turn."""
    if name == OURS:
        painter = painting.Painter(vq, clip, make_jobs(arguments, size, PROMPTS[:1]))
        return make_turn(painter, arguments.steps)
    painter = build_textbook(vq, clip, arguments, size)
    return lambda: [painter.step() for _ in range(arguments.steps)]


def make_jobs(arguments, size: int, texts, drawer: str = "vqgan") -> list[painting.Job]:
    values = {"size": (size, size), "steps": 10**6, "cuts": arguments.cuts, "lr": LR, "drawer": drawer} | PLAIN
    options = options_lib.resolve(values)
    return [painting.Job(prompts.parse_scene(text), 0, options) for text in texts]


def make_turn(painter: painting.Painter, steps: int) -> Callable[[], None]:
    state = painter.state

    def paint():
        nonlocal state
        state, _ = painter.advance(state, steps)

    return paint


def build_textbook(vq, clip, arguments, size: int):
    """Builds the PyTorch painter with our weights. Raises ImportError if PyTorch or transformers is not installed."""
    import torch

    from benchmarks import textbook_guided, textbook_vqgan

    perceptor, device = build_perceptor(clip)
    model = textbook_vqgan.VQGAN(vq.options)
    weights = to_peer(flatten(jax.tree.map(np.asarray, vq.variables["params"])), taming.build_entries(vq.options.to_dict()))
    model.load_state_dict({name: torch.from_numpy(np.array(x, np.float32)) for name, x in weights.items()})
    model.to(device).requires_grad_(False)
    target = torch.from_numpy(np.array(clip.encode_text(PROMPTS[:1])[0])).to(device)
    codes = torch.from_numpy(starts.sample_codes(0, (size // vq.factor,) * 2, vq.num_codes)).long().to(device)
    mean, std = clip.preprocess.mean, clip.preprocess.std
    painter = textbook_guided.Painter(
        model, lambda x: perceptor(pixel_values=x).image_embeds, clip.preprocess.size, mean, std, target, codes,
        arguments.cuts, LR, noise=0.1,
    )  # fmt: skip
    with torch.no_grad():
        check_agreement(vq, clip, codes.cpu().numpy(), painter, device)
    return painter


def build_perceptor(clip):
    """Builds transformers' image tower with the weights of a CLIP. Returns the tower and its device."""
    import torch
    import transformers

    from clip_jax.pretrained.save import save_hf

    torch.set_float32_matmul_precision("high")
    device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        save_hf(clip, f"{folder}/clip")
        perceptor = transformers.CLIPVisionModelWithProjection.from_pretrained(f"{folder}/clip").eval()
    return perceptor.to(device).requires_grad_(False), device


def build_drawer_loop(name: str, clip, arguments, side: int) -> Callable[[], None]:
    """Builds a turn of the PyTorch painter of a drawer, from our initial parameters.

    Raises ImportError if PyTorch or transformers is not installed.
    """
    import torch

    from benchmarks import textbook_guided

    perceptor, device = build_perceptor(clip)
    drawer, size = options_lib.resolve({"drawer": name}).drawing.make(), (side, side)

    def tensor(x):
        return torch.from_numpy(np.array(x)).to(device)

    render = textbook_guided.render_pixels
    if name == "grid":
        render = functools.partial(
            textbook_guided.render_cells, cells=tensor(cell_map(drawer.shape, drawer.cells, size)).long()
        )
    elif name == "fourier":
        scale, correlation = tensor(drawer.scale(size)), tensor(colour.CORRELATION)
        render = functools.partial(textbook_guided.render_fourier, scale=scale, correlation=correlation)
    z = drawer.init(size, [0])[0]
    theirs = render(tensor(z))[0].permute(1, 2, 0).cpu().numpy()
    if not np.allclose(drawer.render(z, Context(size)), theirs, atol=1e-4):
        raise SystemExit(f"the drawer {name} and its textbook loop render different pictures")
    painter = textbook_guided.DrawerPainter(
        render, tensor(z), lambda x: perceptor(pixel_values=x).image_embeds, clip.preprocess.size, clip.preprocess.mean,
        clip.preprocess.std, tensor(clip.encode_text(PROMPTS[:1])[0]), arguments.cuts, LR, noise=0.1,
    )  # fmt: skip
    return lambda: [painter.step() for _ in range(arguments.steps)]


def check_agreement(vq, clip, codes, painter, device: str) -> None:
    """Checks that both implementations agree in decoded images and image features."""
    import torch

    ours = vq.decode(codes[None].astype(np.int32))[0]
    theirs = painter.decode_image()[0].permute(1, 2, 0).cpu().numpy()
    agreement = np.mean(np.abs(ours - theirs) < 1e-2)
    pixels = np.random.default_rng(0).integers(0, 256, (clip.preprocess.size,) * 2 + (3,), np.uint8)
    images = torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1)[None].to(device)
    cosine = float(painter.features(images)[0].cpu().numpy() @ clip.encode_image([pixels])[0])
    if agreement < 0.95 or cosine < 0.999:
        raise SystemExit(f"ours and PyTorch agree in {agreement:.0%} of the pixels, cosine {cosine:.4f}")


def measure_peak_in_subprocess(name: str, arguments, size: int) -> float:
    """Measures the peak memory in MiB of a separate process that runs one implementation."""
    command = [sys.executable, "-m", "benchmarks.guided", "--peak", name, "--size", str(size)]
    command += ["--cuts", str(arguments.cuts), "--steps", "2", "--dtype", arguments.dtype]
    command += ["--tiny"] if arguments.tiny else []
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(output.strip().splitlines()[-1].removeprefix("peak "))


def measure_peak(name: str, run: Callable[[], None]) -> float:
    """Measures the peak memory in MiB of a second turn, minus the memory before that turn (on a CPU: before the first)."""
    if jax.default_backend() != "gpu":
        before = _status_kib("VmRSS")
        run()  # compiles
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak after compilation
        run()
        return (_status_kib("VmHWM") - before) / 2**10
    run()  # compiles, chooses algorithms
    if name == OURS:
        run()
        stats = jax.local_devices()[0].memory_stats()
        return (stats["peak_bytes_in_use"] - stats["bytes_in_use"]) / 2**20
    import torch

    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _status_kib(field: str) -> int:
    """Returns a field of this process's /proc status in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def compare_batching(vq, clip, arguments) -> dict[str, list[float]]:
    """Measures the seconds of a batch of prompts, and of the same prompts in sequence, at the first size."""
    size, texts = arguments.size[0], PROMPTS[: arguments.together]
    at_once = make_turn(painting.Painter(vq, clip, make_jobs(arguments, size, texts)), arguments.steps)
    single = make_turn(painting.Painter(vq, clip, make_jobs(arguments, size, texts[:1])), arguments.steps)

    def paint_in_sequence():
        for _ in texts:
            single()

    return time_in_turns({OURS: at_once, "ours, one prompt after the other": paint_in_sequence}, arguments.rounds)


if __name__ == "__main__":
    main(rows, add_arguments)
