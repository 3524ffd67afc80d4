"""Every tab without a browser: its results are those of its command line, and what cannot be done is a sentence."""

import contextlib
import io
import json
import shlex
import shutil
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clip_jax.cli
import dalle_jax.cli
import vqgan_jax.cli
from multimodal_jax.serve import jobs, page
from multimodal_jax.serve.tab import MAX_CHARACTERS, Choice, Field
from multimodal_jax.serve.tabs import TABS
from train_jax.errors import UserError

PROGRAMS = {"clip-jax": clip_jax.cli.main, "vqgan-jax": vqgan_jax.cli.main, "dalle-jax": dalle_jax.cli.main}
BY_TITLE = {tab.title: tab for tab in TABS}
FILLED = {
    "Search": {"text": "picture 3", "top": 3},
    "Classify": {"picture": "pictures/1.png", "labels": "picture 1, a dog, -3"},
    "Where": {"picture": "pictures/1.png", "texts": "picture 1, a dog"},
    "Reconstruct": {"picture": "pictures/1.png"},
    "Draw": {"prompt": "picture 1", "n": 2, "seed": 3},
    "Complete": {"picture": "pictures/1.png", "prompt": "-1", "n": 2, "rerank": "likelihood", "keep": "left"},
    "Paint": {"prompt": "picture 1 | dog:-0.5", "steps": 2, "cuts": 2, "save_every": 1},
    "Imagine": {"prompt": "picture 1", "n": 1, "guidance": 1.0, "steps": 2, "prior_steps": 2},
}


def fill(title: str, models, **values) -> dict:
    """Values of all fields: the defaults, with others laid over them."""

    def default(field: Field) -> object:
        return field.list_choices(models.runs)[0] if isinstance(field, Choice) else getattr(field, "default", None)

    return {name: default(field) for name, field in BY_TITLE[title].form.items()} | FILLED[title] | values


def use(title: str, models, **values) -> tuple[list, str]:
    """What the page shows, one after the other, without the command line; pictures as (pixels, metadata, caption)."""
    shown, commands = [], set()
    for status, shares, pictures, command in page.run_tab(BY_TITLE[title], models, fill(title, models, **values)):
        commands.add(command)
        shown.append((status, shares, [(*read_picture(Path(file)), caption) for file, caption in pictures]))
    [command] = commands
    return shown, command


def read_picture(file: Path) -> tuple[np.ndarray, dict]:
    with Image.open(file) as image:
        return np.asarray(image), {key: json.loads(text) for key, text in image.text.items()}


def error_of(title: str, models, **values) -> str:
    """The sentence of a tab that refuses values."""
    shown, _ = use(title, models, **values)
    assert 'role="alert"' in shown[-1][0] and shown[-1][1:] == (None, [])
    return shown[-1][0]


def test_every_tab_is_tried():
    assert [tab.title for tab in TABS] == list(FILLED)


@pytest.mark.parametrize("title", FILLED)
def test_a_tab_does_what_its_command_line_does(title, models, tmp_path, monkeypatch, capsys):
    shown, command = use(title, models)
    status, shares, pictures = shown[-1]
    assert 'role="status"' in status
    # The command, in another folder with the same runs and the uploaded picture.
    (tmp_path / "runs").symlink_to(Path("runs").absolute())
    shutil.copy("pictures/1.png", tmp_path)
    monkeypatch.chdir(tmp_path)
    program, *words = shlex.split(command)
    capsys.readouterr()
    assert PROGRAMS[program](words) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    if title == "Search":
        hits = [line.split() for line in printed.splitlines()]
        assert [caption for _, _, caption in pictures] == [score for _, score, _ in hits]
        for (pixels, _, _), (_, _, path) in zip(pictures, hits, strict=True):
            assert np.array_equal(pixels, read_picture(Path(path))[0])
    elif title == "Classify":
        assert {f"{100 * share:.2f}" for share in shares.values()} == {
            line.split("%")[0].split()[-1] for line in printed.splitlines() if "%" in line
        }
    else:
        written = {"Where": ["heat.png"], "Paint": ["painting.png"]}.get(title) or sorted(Path("pictures").glob("*.png"))
        files = [read_picture(Path(file)) for file in written]
        made = {"Reconstruct": pictures[1:], "Where": pictures[-1:]}.get(title, pictures)
        assert len(made) == len(files) > 0
        for pixels, metadata in files:
            assert any(np.array_equal(pixels, other) and metadata == found for other, found, _ in made)


def test_pictures_contain_their_metadata(models):
    shown, _ = use("Draw", models)
    metadata = [found["dalle"] for _, found, _ in shown[-1][2]]
    assert [found["rank"] for found in metadata] == [0, 1] and all(found["prompt"] == "picture 1" for found in metadata)
    painted, _ = use("Paint", models)
    assert painted[-1][2][0][1]["vqgan-jax paint"]["options"]["steps"] == 2


def test_drawing_painting_and_imagining_show_what_they_have_so_far(models):
    drawn, _ = use("Draw", models)
    assert sum("rows of codes" in status for status, _, _ in drawn) >= 2
    assert all(len(pictures) == 2 for status, _, pictures in drawn if "rows of codes" in status)
    painted, _ = use("Paint", models)
    assert [status for status, _, _ in painted if "step " in status][0].startswith('<p role="status">step 1 of 2, loss ')
    imagined, _ = use("Imagine", models, n=3)
    assert [(status, len(pictures)) for status, _, pictures in imagined if " steps" in status] == [
        (f'<p role="status">{count} of 2 steps …</p>', 3) for count in (1, 2)
    ]


def test_a_model_is_loaded_once_and_compiled_once(models, compilations):
    use("Draw", models)
    use("Paint", models)
    clip = models.open("clip", "runs/clip")
    compilations.clear()
    use("Draw", models, prompt="another", seed=5)
    use("Paint", models, prompt="another | cat:-0.2", seed=5, lr=0.2)
    assert compilations == []
    assert models.open("clip", "runs/clip") is clip


# ---------------------------------------------------------------------------------------------------------------------
# What strangers send


@pytest.mark.parametrize("title", [tab.title for tab in TABS])
def test_texts_are_short_and_never_name_files(title, models):
    texts = [name for name, field in BY_TITLE[title].fields.items() if type(field).__name__ == "Text"]
    for name in texts:
        long = error_of(title, models, **{name: "a" * (MAX_CHARACTERS + 1)})
        assert f"1,001 characters; at most {MAX_CHARACTERS:,} are read" in long
        assert "would name a file" in error_of(title, models, **{name: "@/etc/passwd"})


def test_a_painting_reads_no_file_of_the_server(models):
    for part in ("image=/etc/passwd", "image=/etc/passwd:0.5", "direction=/etc/passwd", "a ring:mask=/etc/passwd"):
        error = error_of("Paint", models, prompt=f"a star | {part}")
        assert "the prompt names /etc/passwd, a file of this machine: paint it on the command line" in error


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"n": 1000}, "Pictures = 1000; it must be a whole number in [1, 32]"),
        ({"n": 1.5}, "Pictures = 1.5; it must be a whole number in [1, 32]"),
        ({"n": None}, "Pictures = None"),
        ({"temperature": float("nan")}, "Temperature = nan; it must be a number in [0.0, 5.0]"),
        ({"dalle": "/etc"}, "DALL-E = &#x27;/etc&#x27;; it must be one of runs/dalle"),
        ({"rerank": "/etc"}, "it must be one of runs/clip, likelihood, nothing"),
        ({"prompt": " "}, "Prompt is empty"),
        ({"prompt": ["a"]}, "Prompt is empty"),
    ],
)
def test_values_are_checked_whatever_the_browser_sends(values, sentence, models):
    assert sentence in error_of("Draw", models, **values)


def bomb(width: int, height: int) -> bytes:
    """A PNG of many white pixels in a small file."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([1, 0, 0, 0, 0])
    rows = zlib.compressobj(9)
    data = b"".join(rows.compress(b"\0" + b"\xff" * ((width + 7) // 8)) for _ in range(height)) + rows.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("bomb.png", bomb(8_000, 8_000), "bomb.png: 8000 x 8000 pixels; at most 50,000,000 are decoded"),
        ("worse.png", bomb(20_000, 20_000), "worse.png: too many pixels"),
        ("notes.png", b"no picture", "notes.png: not a readable image"),
        ("empty.png", b"", "empty.png: not a readable image"),
        ("half.png", Path(__file__).parent.parent.parent.joinpath("docs/emoji.png").read_bytes()[:3000], "half.png: not a"),
        ("evil.svg", b"<svg onload='alert(1)'/>", "evil.svg: not a readable image"),
        ("large.png", b"0" * (20 * 2**20 + 1), "large.png: 20,971,521 bytes; at most 20,971,520 are read"),
    ],
)
def test_hostile_uploads_are_refused_by_a_sentence(name, data, sentence, models, tmp_path):
    (tmp_path / name).write_bytes(data)
    for title in ("Search", "Complete"):
        assert sentence in error_of(title, models, picture=str(tmp_path / name), text="")


def test_errors_are_the_sentences_of_the_command_line(models, capsys):
    assert "search takes either a text or an image" in error_of("Search", models, picture="pictures/1.png")
    assert "has no entries: separate entries by commas" in error_of("Classify", models, labels=" , ")
    assert "--template: " in error_of("Classify", models, template="no braces")
    assert "init_pixels = 1.0 has no effect" in error_of("Paint", models, start="random codes")
    words = shlex.split("paint 'a star' --vqgan runs/vqgan --clip runs/clip --out x.png --init-pixels 1")
    assert vqgan_jax.cli.main(words) == 2
    assert "init_pixels = 1.0 has no effect" in capsys.readouterr().err


def test_a_fault_of_ours_does_not_look_like_work(models, monkeypatch, caplog):
    monkeypatch.setattr(models, "open", lambda *_: 1 / 0)
    assert "ZeroDivisionError: division by zero" in error_of("Search", models)
    assert "Search failed" in caplog.text


def test_what_is_written_is_text_and_no_markup(models):
    assert "<b>" not in error_of("Draw", models, dalle="<b>bold</b>")


# ---------------------------------------------------------------------------------------------------------------------
# Jobs


def test_closing_a_job_stops_it_and_frees_the_device():
    begun, ended = threading.Event(), threading.Event()

    def work(job: jobs.Job) -> jobs.Result:
        begun.set()
        try:
            while True:
                job.show("on and on", [np.zeros((2, 2, 3), np.uint8)])
        finally:
            ended.set()

    results = jobs.run(work)
    assert next(results).text == "working …"
    file, _ = next(results).pictures[0]
    assert file.exists()
    results.close()
    assert ended.wait(10) and not file.exists()
    assert [result.text for result in jobs.run(lambda job: jobs.Result(text="next"))] == ["working …", "next"]


def test_jobs_compute_one_at_a_time():
    running, most = [], []

    def work(job: jobs.Job) -> jobs.Result:
        running.append(1)
        most.append(len(running))
        threading.Event().wait(0.05)
        running.pop()
        return jobs.Result()

    threads = [threading.Thread(target=lambda: list(jobs.run(work))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1]


def test_the_error_of_a_job_is_raised_where_its_results_are_read():
    def work(job: jobs.Job) -> jobs.Result:
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        list(jobs.run(work))


def test_what_a_parser_prints_is_the_sentence(models):
    from multimodal_jax.serve.tab import parse

    with contextlib.redirect_stderr(io.StringIO()), pytest.raises(UserError, match="invalid choice: 'none'"):
        parse(dalle_jax.cli.make_parser(), ["none"])
