"""The command `clip-jax`: its output, files, exit codes and error messages."""

import functools
import html.parser
import json
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from clip_jax import cli, clip, sheets
from clip_jax.search import Hit, Index, search

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "clip"


def clip_jax(*arguments, capsys):
    """Runs a command; returns its exit code, standard output and standard error."""
    try:
        code = cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:  # argparse
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def run(capsys):
    return lambda *arguments: clip_jax(*arguments, capsys=capsys)


def write_pictures(folder: Path, captions, drawn) -> Path:
    folder.mkdir()
    for caption in captions:
        drawn(caption).save(folder / f"{caption}.png")
    drawn(captions[0]).save(folder / "<b>bold<i> & 'co'.png")
    return folder


def one_line(error: str) -> str:
    assert len(error.strip().splitlines()) == 1 and "Traceback" not in error, error
    return error


@pytest.fixture(scope="module", autouse=True)
def load_once():
    """Loads a model once, instead of in every command."""
    with mock.patch.object(clip, "load", functools.cache(clip.load)):
        yield


@pytest.fixture
def folder(tmp_path, captions, drawn):
    return write_pictures(tmp_path / "my photos", captions, drawn)


@pytest.fixture(scope="module")
def indexed(tiny, captions, drawn, tmp_path_factory):
    """`(folder, index)` of the pictures of `write_pictures`, indexed once."""
    folder = write_pictures(tmp_path_factory.mktemp("indexed") / "my photos", captions, drawn)
    assert cli.main(["index", str(folder), "--model", str(tiny[1]), "--out", str(folder.parent / "index")]) == 0
    return folder, folder.parent / "index"


@pytest.fixture
def index(indexed, folder, tmp_path):
    """A copy of the index, for the test's own folder."""
    shutil.copytree(indexed[1], tmp_path / "index")
    meta = json.loads((tmp_path / "index" / "meta.json").read_text())
    (tmp_path / "index" / "meta.json").write_text(json.dumps(meta | {"folder": str(folder.resolve())}))
    return tmp_path / "index"


# ---------------------------------------------------------------------------------------------------------------------
# classify


def test_classify_prints_the_model_s_probabilities(run, tiny, trained, folder):
    files = [folder / "a red circle.png", folder / "a blue square.png"]
    labels = ["red circle", "blue square", "green triangle"]
    expected = trained.classify(files, labels, ["a {}", "a photo of a {}."])
    options = (
        "--labels",
        "red circle, blue square ,,green triangle",
        "--template",
        "a {}",
        "--template",
        "a photo of a {}.",
    )
    code, out, _ = run("classify", *files, "--model", tiny[1], *options, "--json")
    assert code == 0
    rows = json.loads(out)
    assert [row["image"] for row in rows] == [str(file) for file in files]
    for row, expected_row in zip(rows, expected, strict=True):
        assert list(row["probabilities"]) == labels
        np.testing.assert_allclose(list(row["probabilities"].values()), expected_row, rtol=1e-5)

    code, out, _ = run("classify", *files, "--model", tiny[1], *options, "--top", "2")
    lines = out.splitlines()
    assert code == 0 and len(lines) == 2 * 4
    best = int(expected[0].argmax())
    assert lines[0] == str(files[0])
    assert lines[1].split("%")[0].split() == [*labels[best].split(), f"{100 * expected[0, best]:.2f}"]
    assert "the other 1" in lines[3]


def test_labels_from_a_file(run, tiny, folder, tmp_path):
    (tmp_path / "labels.txt").write_text("red circle\n\nblue, or green, square\nred circle\n", "utf-8-sig")
    options = ("--model", tiny[1], "--labels", f"@{tmp_path / 'labels.txt'}", "--json")
    code, out, _ = run("classify", folder / "a red circle.png", *options)
    assert code == 0 and list(json.loads(out)[0]["probabilities"]) == ["red circle", "blue, or green, square"]


def test_classify_goes_on_after_a_broken_picture(run, tiny, folder, tmp_path):
    (tmp_path / "broken.jpg").write_text("no picture")
    options = ("--model", tiny[1], "--labels", "cat,dog")
    code, out, error = run("classify", tmp_path / "broken.jpg", folder / "a red circle.png", *options)
    assert code == 2 and "a red circle.png" in out
    assert "skipped" in one_line(error) and "broken.jpg: not a readable image" in error


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["nowhere.jpg", "--labels", "cat"], "no image can be read; nowhere.jpg: No such file"),
        (["PICTURE", "--labels", " , "], "--labels ' , ' has no entries"),
        (["PICTURE", "--labels", "@LATIN"], "latin.txt: byte 3 is not UTF-8"),
        (["PICTURE", "--labels", "cat", "--template", "@LATIN"], "latin.txt: byte 3 is not UTF-8"),
        (["PICTURE", "--labels", "@BLANK"], "blank.txt has no line with a label"),
        (["PICTURE", "--labels", "@nowhere.txt"], "nowhere.txt: No such file"),
        (["PICTURE", "--labels", "cat", "--template", "a photo"], "'a photo' has no {}"),
        (["PICTURE", "--labels", "cat", "--top", "0"], "--top 0 must be at least 1"),
        (
            ["PICTURE", "--labels", "cat", "--model", "nowhere"],
            "nowhere: no such file or folder. load opens run directories",
        ),
    ],
)
def test_mistakes_in_classify_are_one_line(run, tiny, folder, tmp_path, arguments, words):
    (tmp_path / "latin.txt").write_bytes("gar\u00e7on".encode("latin-1"))
    (tmp_path / "blank.txt").write_text(" \n\n")
    names = {
        "PICTURE": folder / "a red circle.png",
        "@LATIN": f"@{tmp_path / 'latin.txt'}",
        "@BLANK": f"@{tmp_path / 'blank.txt'}",
    }
    arguments = [names.get(a, a) for a in arguments]
    code, out, error = run("classify", *([] if "--model" in arguments else ["--model", tiny[1]]), *arguments)
    assert code == 2 and out == "" and words in one_line(error) and error.startswith("clip-jax classify: error: ")


# ---------------------------------------------------------------------------------------------------------------------
# index


def test_index_reports_what_it_did(run, tiny, folder, tmp_path):
    (folder / "notes.txt").touch()
    (folder / "cut.png").write_bytes((folder / "a red circle.png").read_bytes()[:60])
    command = ("index", folder, "--model", tiny[1], "--out", tmp_path / "index")
    code, out, error = run(*command)
    assert code == 0 and "index:" in error and "14/14" in error, "a progress bar"
    assert "13 image(s): 13 newly encoded, 0 reused" in out
    assert "1 other file(s) skipped: 1 .txt" in out
    assert "1 file(s) cannot be read" in out and "cut.png: not a readable image" in out
    (folder / "a red circle.png").unlink()
    _, out, _ = run(*command)
    assert "12 image(s): 0 newly encoded, 12 reused, 1 dropped" in out


def test_an_index_is_made_in_shares_and_joined(run, tiny, folder, tmp_path):
    command = ("index", folder, "--model", tiny[1], "--out", tmp_path / "index")
    for part in ("1/2", "2/2"):
        code, out, _ = run(*command, "--part", part)
        assert code == 0 and f"index.{part[0]}-of-2: " in out and "without --part merges all shares" in out
    code, out, _ = run(*command)
    assert code == 0 and ": 0 newly encoded" in out


def test_mistakes_in_index_are_one_line(run, tiny, folder, tmp_path):
    code, _, error = run("index", tmp_path / "nowhere", "--model", tiny[1], "--out", tmp_path / "index")
    assert code == 2 and "nowhere: no such folder" in one_line(error)
    (tmp_path / "empty").mkdir()
    code, _, error = run("index", tmp_path / "empty", "--model", tiny[1], "--out", tmp_path / "index")
    assert code == 2 and "empty: no images" in one_line(error)
    code, _, error = run("index", folder, "--model", tiny[1], "--out", folder)
    assert code == 2 and "is not an index" in one_line(error)
    for part in ("5/4", "0/4", "2", "-1/2"):
        code, _, error = run("index", folder, "--model", tiny[1], "--out", tmp_path / "index", f"--part={part}")
        assert code == 2 and f"--part {part} must be I/N, such as 2/4" in one_line(error)
    code, _, error = run("index", folder, "--model", tiny[1], "--out", tmp_path / "index", "--batch-size", "0")
    assert code == 2 and "--batch-size 0" in one_line(error)


# ---------------------------------------------------------------------------------------------------------------------
# search


def test_search_prints_the_closest_pictures(run, index, trained, folder):
    names = sorted(p.name for p in folder.iterdir())
    scores = trained.encode_image([folder / name for name in names]) @ trained.encode_text(["a blue square"])[0]
    order = np.argsort(-scores, kind="stable")[:4]
    code, out, _ = run("search", index, "a blue square", "--top", "4", "--json")
    result = json.loads(out)
    assert code == 0 and result["query"] == "a blue square"
    np.testing.assert_allclose([hit["score"] for hit in result["hits"]], scores[order], atol=1e-6)
    code, out, _ = run("search", index, "a blue square", "--top", "4")
    assert [line.split("/")[-1] for line in out.splitlines()] == [hit["path"].split("/")[-1] for hit in result["hits"]]
    code, out, _ = run("search", index, "--image", folder / "a blue square.png", "--top", "1")
    assert code == 0 and out.split()[:2] == ["1", "1.000"] and out.strip().endswith("a blue square.png")


class Page(html.parser.HTMLParser):
    """Parses a page into its elements and text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words.append(data)


def test_search_writes_a_page_that_needs_no_other_file(run, index, tmp_path):
    query = "<script>alert('a red circle')</script> & more"
    code, _, error = run("search", index, query, "--top", "13", "--html", tmp_path / "hits.html")
    assert code == 0 and "wrote" in error
    text = (tmp_path / "hits.html").read_text("utf-8")
    page = Page(text)
    known = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "div", "figure", "img", "figcaption", "span"}
    assert {tag for tag, _ in page.elements} <= known, "names and query brought no elements"
    pictures = [attributes for tag, attributes in page.elements if tag == "img"]
    assert len(pictures) == 13 and all(p["src"].startswith("data:image/png;base64,") for p in pictures)
    assert query in page.words and "<b>bold<i> & 'co'.png" in [p["alt"] for p in pictures]
    assert "http" not in text and "url(" not in text


def test_search_writes_a_contact_sheet(run, index, tmp_path, trained, folder):
    code, _, _ = run("search", index, "a red circle", "--top", "9", "--png", tmp_path / "hits.png")
    assert code == 0
    with Image.open(tmp_path / "hits.png") as sheet:
        sheet.load()
        assert sheet.format == "PNG" and sheet.mode == "RGB" and 600 < sheet.width < 1000 and 600 < sheet.height < 1100
        colours = {colour for _, colour in sheet.getcolors(2**20)}
    for hit in search(
        Index.open(index), trained, text="a red circle", k=9
    ):  # the colour of each picture's shape is somewhere on the sheet
        colour = Image.open(hit.path).convert("RGB").getpixel((12, 14))
        assert any(np.abs(np.subtract(colour, other)).max() <= 4 for other in colours), hit


def test_a_picture_that_is_gone_is_still_listed(run, index, folder, tmp_path):
    (folder / "a red circle.png").unlink()
    outputs = ("--html", tmp_path / "hits.html", "--png", tmp_path / "hits.png")
    code, out, _ = run("search", index, "a red circle", "--top", "13", *outputs)
    assert code == 0 and "a red circle.png" in out
    assert "not readable" in (tmp_path / "hits.html").read_text("utf-8")


def test_an_unfinished_index_says_so(run, index):
    text = (index / "meta.json").read_text().replace('"complete": true', '"complete": false')
    (index / "meta.json").write_text(text)
    code, out, error = run("search", index, "a red circle", "--top", "2")
    assert code == 0 and len(out.splitlines()) == 2
    assert "is unfinished (13 images so far)" in one_line(error)


def test_mistakes_in_search_are_one_line(run, index, folder, tmp_path, tiny):
    picture = folder / "a red circle.png"
    for arguments, words in (
        ((tmp_path / "nowhere", "x"), "no index found; make one with"),
        ((folder, "x"), "is not an index"),
        ((index,), "pass either a text or --image FILE"),
        ((index, "x", "--image", picture), "pass either a text or --image FILE"),
        ((index, "--image", tmp_path / "nowhere.jpg"), f"error: {tmp_path / 'nowhere.jpg'}: No such file"),
        ((index, "x", "--top", "0"), "--top 0"),
        ((index, "x", "--model", tmp_path / "nowhere"), "does not exist: pass its path with --model"),
        ((index, "x", "--html", tmp_path / "no" / "x.html"), "x.html: there is no folder"),
        ((index, "x", "--png", tmp_path / "no" / "x.png"), "x.png: there is no folder"),
        ((index, "x", "--png", tmp_path / "x.jpg"), "x.jpg: the contact sheet is a PNG; use the suffix .png"),
    ):
        code, _, error = run("search", *arguments)
        assert code == 2 and words in one_line(error), error
    meta = json.loads((index / "meta.json").read_text())
    (index / "meta.json").write_text(json.dumps(meta | {"fingerprint": "0" * 64}))
    code, _, error = run("search", index, "x")
    assert code == 2 and "made with other weights" in one_line(error) and "0" * 16 in error


# ---------------------------------------------------------------------------------------------------------------------
# Help, and the sheets by themselves


@pytest.mark.parametrize("command", [(), ("classify",), ("evaluate",), ("index",), ("search",)])
def test_help_shows_examples(run, command):
    code, out, _ = run(*command, "--help")
    assert code == 0 and "examples:" in out and f"clip-jax {' '.join(command)}".strip() in out


def test_wrong_commands_are_refused_before_jax_is_loaded():
    for arguments in (["bogus"], [], ["index"]):
        code = f"import sys; sys.argv = ['clip-jax'] + {arguments!r}\nfrom clip_jax import cli\ntry: cli.main()\n"
        code += "finally: assert 'jax' not in sys.modules"
        process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        error = process.stderr
        assert process.returncode == 2 and "usage:" in error and "Traceback" not in error, error


def test_a_reader_that_stops_early_is_no_error():
    command = [sys.executable, "-m", "clip_jax.cli", "verify", str(GOLDEN / "openai-vit" / "ViT-tiny.pt")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()  # before anything is written: no reader is left
    error = process.stderr.read()
    assert process.wait() == 0 and error == ""
    process.stderr.close()


def test_sheets_mark_correct_and_wrong_hits(tmp_path):
    Image.new("RGB", (300, 100), (10, 200, 10)).save(tmp_path / "wide.png")
    cells = [
        sheets.Cell(tmp_path / "wide.png", "a very long name " * 9, "0.5", True),
        sheets.Cell(Image.new("RGB", (8, 8), (200, 0, 200)), "name", "0.4", False),
        sheets.Cell(tmp_path / "gone.png", "gone"),
    ]
    section = sheets.Section("title " * 60, cells)
    sheet = np.asarray(sheets.render_contact_sheet([section, section], columns=2, size=100))
    assert sheet.dtype == np.uint8 and sheet.shape[2] == 3
    for colour in ((10, 200, 10), (200, 0, 200), (0x15, 0x80, 0x3D), (0xB9, 0x1C, 0x1C)):
        assert (sheet == colour).all(axis=2).any(), colour
    green = np.argwhere((sheet == (10, 200, 10)).all(axis=2))
    first = green[green[:, 0] < len(sheet) / 2]
    assert np.ptp(first[:, 1]) + 1 == 100 and np.ptp(first[:, 0]) + 1 == 33, "it keeps its aspect"
    page = Page(sheets.render_page("t", [section]))
    assert [a["class"] for t, a in page.elements if t == "figure" and a] == ["right", "wrong"]
    hits = [Hit(tmp_path / "a" / "b.png", 0.25)]
    assert sheets.make_hits_section("q", hits, tmp_path).cells[0].name == "a/b.png"


# ---------------------------------------------------------------------------------------------------------------------
# heatmap, verify


def test_heatmap_writes_a_sheet_of_the_picture_and_a_map_for_each_text(run, tiny, folder, tmp_path):
    code, _, error = run(
        "heatmap", folder / "a red circle.png", "red", "a circle", "--model", tiny[1], "--png", tmp_path / "heat.png"
    )
    assert code == 0 and "wrote" in error
    with Image.open(tmp_path / "heat.png") as sheet:
        assert sheet.width > 3 * 256 and sheet.height > 256
    code, _, error = run("heatmap", tmp_path / "none.png", "red", "--model", tiny[1], "--png", tmp_path / "no.png")
    assert code == 2 and "none.png" in one_line(error) and not (tmp_path / "no.png").exists()


def test_heat_sections_are_hot_at_the_highest_cosine():
    picture = Image.new("RGB", (40, 40), (128, 128, 128))
    (section,) = sheets.make_heat_sections(picture, ["x"], np.array([[[0.1, 0.1], [0.1, 0.4]]], np.float32))
    shown = np.asarray(section.cells[1].picture, np.float32).sum(-1)
    assert shown[35, 35] > 2 * shown[5, 5] and section.cells[1].note == "cosine 0.100 to 0.400"


def test_verify_describes_a_model(run, tiny):
    code, out, _ = run("verify", tiny[1])
    assert code == 0
    fields = dict(line.split(maxsplit=1) for line in out.splitlines() if line.strip())
    assert fields["embedding"] == "16" and fields["loss"] == "softmax" and fields["format"].startswith("run directory")
    assert "image tower    ViT, 1 layers, width 16, 2 heads, patches of 8 px; 16 px; pooling: class token" in out


@pytest.mark.parametrize("kind", ["hf-clip", "hf-siglip"])
def test_verify_without_the_peer_says_that_it_did_not_compare(run, monkeypatch, kind):
    from clip_jax import verify

    monkeypatch.setattr(verify, "is_peer_installed", lambda: False)
    code, out, _ = run("verify", GOLDEN / kind)
    assert code == 0 and "not compared with transformers" in out and "activation" in out
    assert "read from      model.safetensors, config.json, preprocessor_config.json" in out


def test_verify_of_a_file_names_its_configuration(run):
    code, out, _ = run("verify", GOLDEN / "open-clip" / "open_clip_model.safetensors")
    assert code == 0 and "read from      open_clip_model.safetensors, open_clip_config.json" in out
    assert "activation     gelu," in out and "width 32, 2 heads" in out
    code, out, _ = run("verify", GOLDEN / "big-vision" / "siglip.npz")
    assert code == 0 and "preprocessing  squash to 24 px, bilinear_aliased" in out


def test_verify_of_an_empty_directory_is_an_error(run, tmp_path):
    code, _, error = run("verify", tmp_path)
    assert code == 2 and str(tmp_path) in one_line(error)
