"""The pages of docs/ and README: commands parse, their configs resolve, and quotations are those of the code."""

import argparse
import ast
import contextlib
import functools
import importlib
import importlib.util
import io
import itertools
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from ml_collections import ConfigDict
from PIL import Image
from scipy.io import wavfile
from written_runs import write_evaluations, write_run

from multimodal_jax import __main__ as multimodal_cli
from multimodal_jax.serve import page as page_lib
from tests import check_site
from tests.multimodal.conftest import train_all
from tests.shared_run import on_one_device
from train_jax import __main__ as train_cli
from train_jax import config as config_lib
from train_jax import config_file
from train_jax.data import sources
from vqgan_jax.guided import video

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PACKAGES = ("nn_jax", "train_jax", "clip_jax", "vqgan_jax", "dalle_jax", "multimodal_jax")
PROGRAMS = {
    "train-jax": train_cli.cli,
    **{f"{name}-jax": importlib.import_module(f"{name}_jax.cli").main for name in ("clip", "vqgan", "dalle")},
    "multimodal-jax": multimodal_cli.main,
}
WITH_CONFIG = ("sweep", "plan", "evaluate", "finetune", "blend")  # subcommands of train-jax that take --config.NAME=VALUE
# The config that a page of a model shows a part of.
SHOWN = {"clip": "clip/shapes", "vqgan": "vqgan/shapes", "dalle": "dalle/shapes", "unclip": "unclip/decoder_shapes"}
PAGES = {path.stem: path.read_text("utf-8") for path in sorted(DOCS.glob("*.md"))} | {
    "README": (ROOT / "README.md").read_text("utf-8")
}


def blocks(text: str, language: str) -> list[str]:
    """Contents of the fences of a language; in README, indented lines are commands, too."""
    return re.findall(rf"^```{language}\b[^\n]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[list[str]]:
    """The commands of a page, as words, without variables of the environment and launchers before them."""
    code = blocks(page, "sh") + ["\n".join(re.findall(r"^    ((?:make|pip|\w+-jax|python) .*)$", page, re.MULTILINE))]
    lines = [shlex.split(line, comments=True) for line in "\n".join(code).replace("\\\n", "").splitlines()]
    for words in filter(None, lines):
        if words[0] == "srun":
            words[: next(i for i, word in enumerate(words) if word in PROGRAMS)] = []
    return [words for words in lines if words]


ALL = [(name, shlex.join(words)) for name, page in PAGES.items() for words in commands(page)]


class Parsed(Exception):
    """A command line that its own parser has accepted: `(arguments, other words)`."""


def parse(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Lets a program parse its command line, and stops it there."""
    original, depth = argparse.ArgumentParser.parse_known_args, 0

    def parse_known_args(self, *args, **kwargs):
        nonlocal depth
        depth += 1
        parsed = original(self, *args, **kwargs)
        depth -= 1
        if depth == 0:  # not a parser of a subcommand, which the program's parser calls
            raise Parsed(*parsed)
        return parsed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Parsed) as caught:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", parse_known_args)
        PROGRAMS[words[0]](words[1:])
    return caught.value.args


def check_options(words: list[str], arguments: argparse.Namespace, others: list[str]) -> None:
    """Words that the parser does not know are options, of the config that the command names."""
    own = re.compile(r"--(encode|sample|imagine|paint)\." if words[1] == "plan" else "$^")
    overrides = [word for word in others if not own.match(word)]
    assert all(word.startswith("--config.") for word in overrides), overrides
    name = "clip/finetune" if words[1] == "finetune" else getattr(arguments, "config", None)
    if name is not None:
        config = config_file.load(name)
        if getattr(arguments, "machine", None):
            config = config_file.on_machine(config, arguments.machine)
        config_lib.fill(config_file.override(config, overrides))


@pytest.fixture
def own_configs(tmp_path, monkeypatch):
    """The current folder holds `configs`, as a clone does, and the config files that pages print."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for page in PAGES.values():
        for code in blocks(page, "python"):
            if match := re.match(r"# (\w+\.py)\n", code):
                (tmp_path / match[1]).write_text(code, "utf-8")


@pytest.mark.parametrize("page, line", ALL)
def test_commands_are_accepted_by_their_programs_and_options_by_their_configs(page, line, own_configs):
    words = shlex.split(line)
    if words[0] in PROGRAMS:
        arguments, others = parse(words)
        if words[0] == "train-jax" and (words[1].startswith("-") or words[1] in WITH_CONFIG):
            check_options(words, arguments, others)
        else:
            assert others == []
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    elif words[:2] == ["pip", "install"]:
        for extra in re.findall(r"\[(.*?)\]", line):
            assert f'"{extra}": [' in (ROOT / "setup.py").read_text("utf-8")
    else:
        assert words[:2] == ["python", "-m"] and importlib.util.find_spec(words[2]), line


# What makes runs tiny, by the family of their configs.
_TINY = {
    "clip": "model.image.size=16 model.image.width=32 model.image.depth=1 model.image.heads=2 model.embed_dim=8 "
    "model.text.width=16 model.text.depth=1 model.text.heads=2 tokenizer.vocab_size=560",
    "vqgan": "model.resolution=16 model.channels=4 model.multipliers=(1,2) model.attention=() model.groups=2 "
    "model.z_channels=8",
    "dalle": "model.text_length=12 model.width=16 model.depth=1 model.heads=2 tokenizer.vocab_size=560",
}


def run_commands(name: str) -> None:
    """Runs the commands of a page in their order, but for installing, testing and downloading; all is tiny."""
    page = re.sub(r'^```sh title="Downloads.*?^```$', "", PAGES[name], flags=re.MULTILINE | re.DOTALL)
    for words in (words for words in commands(page) if words[0] in PROGRAMS):
        if words[1].startswith("--config=") and "--options" not in words:
            family = config_file.load(words[1].removeprefix("--config=")).task.partition("_")[0]
            tiny = ["steps=2", "log_every=1", "data.batch_size=8", "optim.warmup_steps=1", *_TINY[family].split()]
            words = [*words, *(f"--config.{option}" for option in tiny)]
        try:
            assert PROGRAMS[words[0]](words[1:]) in (0, None)
        except SystemExit as end:  # subcommands of train-jax
            assert not end.code, end.code


@pytest.fixture
def one_device(monkeypatch):
    """For one, programs compile sooner."""
    device = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: device)


@pytest.mark.slow
def test_the_quickstart(own_configs, one_device, tmp_path, capsys):
    Image.new("RGB", (24, 20), "white").save(tmp_path / "photo.png")
    run_commands("quickstart")
    printed = capsys.readouterr().out
    assert "a seven" in printed
    assert "parameters" in printed.rpartition("clip-digits")[2]
    (code,) = blocks(PAGES["quickstart"], "python")
    exec(code, {})


@pytest.mark.slow
def test_your_own_data_from_the_folder_to_the_page(own_configs, one_device, tmp_path, capsys, monkeypatch):
    records = []
    for colour, number in itertools.product(("red", "green", "blue", "yellow"), range(10)):
        Image.new("RGB", (24, 20), colour).save(file := io.BytesIO(), "PNG")
        captions = [f"a {colour} apple, number {number}", f"an apple in {colour}"]
        records.append({"image": file.getvalue(), "captions": captions})
    with monkeypatch.context() as patch:
        patch.setattr(sources, "open_source", lambda name, split: records)  # instead of emoji, which are downloaded
        runpy.run_path("photos.py")
    served = []
    monkeypatch.setattr(page_lib, "serve", lambda models, host, port: served.append(models.runs))
    run_commands("your-data")
    assert len(served) == 1 and served[0].missing(("clip", "index", "vqgan", "dalle")) == []
    assert {path.name for path in tmp_path.glob("*.png")} == {"hits.png", "reconstructions.png", "apples.png"}
    capsys.readouterr()
    runpy.run_path("use.py")
    assert "(1, 8, 8)\n(1, 2, 16, 16, 3)" in capsys.readouterr().out


# Every command of a page is executed, by the two tests above or the one below, unless its fence has a title, which tells
# what it needs: hardware, time, a network.
MARKED = re.compile(r"CPU|GPU|H100|v5e|hosts|[Dd]ownloads|Uploads")
UNMARKED = {name: code for name in PAGES if (code := "".join(re.findall(r"^```sh\n(.*?)^```$", PAGES[name], re.M | re.S)))}
# What makes a command take seconds, laid over its own options.
_QUICK = {
    "paint": "--steps=2 --cuts=2",
    "generate": "--n=2 --best=1",
    "complete": "--n=2",
    "imagine": "--n=2 --steps=2 --prior-steps=2",
    "vary": "--n=2 --steps=2",
    "between": "--n=2 --steps=2",
    "edit": "--steps=2",
}
_LONG = re.compile(":from=|--overlay-every")  # a painting whose command names late steps


def make_quick(line: str, command: str) -> list[str]:
    """The options that make a command take seconds."""
    words = _QUICK.get(command, "").split()
    if _LONG.search(line):
        words.append("--steps=200")
    if "--frames" in line or "--frame-steps" in line:
        words.append("--frame-steps=2")
    return [*words, *(["--frames=3"] if "--frames" in line else [])]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with what the commands of the pages read, all of it tiny."""
    folder = tmp_path_factory.mktemp("world")
    with on_one_device(), contextlib.chdir(folder):
        train_all(folder)
    runs = folder / "runs"
    (runs / "demo").mkdir()
    links = {"clip-shapes": "clip", "demo/clip": "clip", "vqgan-shapes": "vqgan", "dalle-shapes": "dalle"}
    links |= {"unclip-decoder-shapes": "unclip/decoder"}
    for name, model in links.items():
        (runs / name).symlink_to(runs / model)
    (folder / "FOLDER").symlink_to(folder / "pictures")
    for name in ("photo", "half", "shape", "a", "b"):
        shutil.copy(folder / "pictures" / "0.png", folder / f"{name}.png")
    Image.linear_gradient("L").save(folder / "ivy.png")
    for name in ("rose", "waves"):
        Image.radial_gradient("L").convert("RGB").resize((32, 32)).save(folder / f"{name}.png")
    wavfile.write(folder / "song.wav", 8000, np.sin(np.arange(8000)).astype(np.float32))
    video.write(folder / "cat.mp4", [np.full((32, 32, 3), 80 * shade, np.uint8) for shade in range(3)], 12)
    for lr, seed in itertools.product((0.001, 0.003), range(3)):
        metrics = {"loss": [2.0, 1.0 + lr * seed], "test/top1": [None, 0.5 + lr * seed]}
        write_run(runs / "lr" / f"{lr}-{seed}", metrics, {"optim": {"lr": lr}, "seed": seed}, every=500)
    write_evaluations(folder / "results.jsonl", ("runs/a", "digits", {"top1": 0.5}), ("runs/b", "digits", {"top1": 0.6}))
    for index, name in enumerate(("old-1", "a", "b")):
        write_run(runs / name, {"loss": [2.0, 1.0 + index]}, {"seed": index})
    (folder / "my_losses.py").write_text(re.search(r'title="my_losses.py"\n(.*?)^```$', PAGES["painting"], re.M | re.S)[1])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(UNMARKED.keys() - {"quickstart", "your-data"}))
def test_what_is_not_marked_is_executed(name, world, monkeypatch, one_device, capsys):
    monkeypatch.chdir(world)
    monkeypatch.setattr(sys, "path", list(sys.path))  # to which `paint --loss` adds the folder
    for line in UNMARKED[name].replace("\\\n", "").splitlines():
        program, *words = shlex.split(line, comments=True)
        try:
            code = PROGRAMS[program]([*words, *make_quick(line, words[0])])
        except SystemExit as end:  # subcommands of train-jax
            code = end.code
        assert not code, f"{line}: {capsys.readouterr().err.splitlines()[-1:]}"


def test_a_title_of_commands_tells_what_they_need():
    titles = [title for page in PAGES.values() for title in re.findall(r'^```sh title="(.*)"$', page, re.MULTILINE)]
    assert len(titles) > 15 and [title for title in titles if not MARKED.search(title)] == []


def test_pages_have_commands_of_every_program():
    assert {words.split()[0] for _, words in ALL} >= {*PROGRAMS, "make", "pip"}
    assert len(ALL) > 100


@pytest.mark.parametrize("name", PAGES)
def test_python_of_pages_is_python(name):
    for code in blocks(PAGES[name], "python"):
        ast.parse(code)


@pytest.mark.parametrize("name", SHOWN)
def test_pages_show_what_the_configs_say(name):
    code = next(code for code in blocks(PAGES[name], "python") if code.startswith("c."))
    c = ConfigDict({"data": {}, "model": {}, "optim": {}, "evals": {}})
    exec(code, {"c": c})
    actual = config_file.load(SHOWN[name])

    def check(shown, config, path):
        for key, value in shown.items():
            if isinstance(value, ConfigDict):
                check(value, config[key], f"{path}.{key}")
            else:
                assert config[key] == value, f"{path}.{key}"

    check(c, actual, "c")


@functools.cache
def sentences() -> list[str]:
    """The strings of the packages, with `…` for what is put into them."""
    texts = []
    for path in (path for package in PACKAGES for path in (ROOT / package).glob("**/*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                texts.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return texts


QUOTED = re.findall(r"^\| `((?:[^`\\]|\\`)+)` \|", PAGES["troubleshooting"], re.MULTILINE)


@pytest.mark.parametrize("message", QUOTED)
def test_quoted_errors_are_those_of_the_code(message):
    parts = message.replace("\\`", "`").split("…")
    pattern = re.compile(".*".join(map(re.escape, parts)), re.DOTALL)
    assert max(map(len, parts)) > 4 and any(pattern.match(sentence) for sentence in sentences())


def test_troubleshooting_quotes_the_commonest():
    assert len(QUOTED) >= 25


@pytest.mark.parametrize("name", re.findall(r"`((?:nn|train|clip|vqgan|dalle)_jax[.\w]*)`", PAGES["glossary"]))
def test_the_glossary_names_what_there_is(name):
    module, _, attribute = name.rpartition(".")
    assert name in modules() or (module in modules() and hasattr(importlib.import_module(module), attribute))


def modules() -> list[str]:
    """Names of all modules and packages, from their files."""
    parts = [path.relative_to(ROOT).with_suffix("").parts for name in PACKAGES for path in (ROOT / name).glob("**/*.py")]
    return [".".join(names[:-1] if names[-1] == "__init__" else names) for names in parts]


def pages(menu: list | str) -> list[str]:
    """The pages of a menu, which is a list of `{title: menu}`."""
    return [menu] if isinstance(menu, str) else [page for entry in menu for part in entry.values() for page in pages(part)]


def test_every_page_is_in_the_menu_and_every_module_in_the_reference():
    menu = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]
    assert sorted(pages(menu)) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.glob("**/*.md"))
    reference = "\n".join(path.read_text("utf-8") for path in DOCS.glob("reference/*.md"))
    assert sorted(re.findall("^::: (.+)$", reference, re.MULTILINE)) == sorted(modules())


def test_what_is_missing_or_loaded_from_elsewhere_is_found(tmp_path):
    (tmp_path / "here.png").touch()
    (tmp_path / "a.css").write_text("@import 'https://x.org/b.css'; p {background: url(here.png)} q {mask: url(data:,x)}")
    (tmp_path / "b.html").write_text(
        '<a href="https://x.org">fine</a> <a href="c.html#d">missing</a> <a href="#e">fine</a> <img src="here.png">'
        '<img srcset="here.png 1x, gone.png 2x"><script src="//x.org/s.js"></script><pre class="mermaid"></pre>'
        '<link rel="stylesheet" href="https://x.org/f.css"><link rel="canonical" href="https://x.org/">'
    )
    assert check_site.find_problems(tmp_path) == [
        "a.css: loads https://x.org/b.css",
        "b.html: class mermaid makes a script fetch",
        "b.html: there is no gone.png",
        "b.html: loads //x.org/s.js",
        "b.html: loads https://x.org/f.css",
        "b.html: there is no c.html#d",
    ]
