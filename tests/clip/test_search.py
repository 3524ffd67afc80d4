"""The index of a folder: search against brute force, unusual files, updates, and interruptions at any moment."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from clip_jax import index_files, nearest, search
from clip_jax.index_files import SearchError, display_path
from clip_jax.search import Index, build
from train_jax.data.images import MAX_PIXELS


def save(folder, names, drawn, captions):
    for name, caption in zip(names, captions, strict=False):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        drawn(caption).save(folder / name)


@pytest.fixture
def folder(tmp_path, captions, drawn):
    """Twelve readable pictures in nested folders."""
    folder = tmp_path / "photos"
    save(folder, [f"{'abc'[i % 3]}/{i:02d}.png" for i in range(12)], drawn, captions)
    return folder


def quiet(clip, folder, out, **options):
    return build(clip, folder, out, progress=False, **options)


def test_half_precision_halves_the_index_and_finds_the_same(clip, folder, tmp_path):
    for name, half in (("full", False), ("half", True)):
        quiet(clip, folder, tmp_path / name, half=half)
    full, half = (Index.open(tmp_path / name) for name in ("full", "half"))
    assert half.embeddings.dtype == np.float16 and full.embeddings.dtype == np.float32
    np.testing.assert_allclose(half.embeddings, full.embeddings, atol=5e-4)
    scores = [{h.path: h.score for h in search.search(i, clip, text="a red circle", k=12)} for i in (full, half)]
    assert all(abs(scores[0][path] - scores[1][path]) < 1e-3 for path in scores[0])
    assert quiet(clip, folder, tmp_path / "half", half=True).reused == 12
    with pytest.raises(SearchError, match="holds float16, not float32: index with the same precision"):
        quiet(clip, folder, tmp_path / "half")


def expected(clip, folder, paths):
    return clip.encode_image([folder / path for path in paths])


# ---------------------------------------------------------------------------------------------------------------------
# Search


def test_search_equals_brute_force(clip, folder, tmp_path, captions, drawn):
    quiet(clip, folder, tmp_path / "index", batch_size=5)
    index = Index.open(tmp_path / "index")
    assert index.complete and len(index) == 12
    paths = sorted(str(p.relative_to(folder)) for p in folder.rglob("*.png"))
    assert list(index.paths) == paths
    rows = expected(clip, folder, paths).astype(np.float64)
    np.testing.assert_allclose(index.embeddings, rows, rtol=1e-5, atol=1e-6)
    for query in ({"text": "a blue square"}, {"image": drawn("a green circle")}, {"image": folder / paths[3]}):
        embedding = clip.encode_text([query["text"]]) if "text" in query else clip.encode_image([query["image"]])
        scores = rows @ embedding[0].astype(np.float64)
        for top in (1, 5, 12, 99):
            hits = search.search(index, clip, **query, k=top)
            order = np.argsort(-scores, kind="stable")[:top]
            assert [hit.path for hit in hits] == [folder / paths[i] for i in order]
            np.testing.assert_allclose([hit.score for hit in hits], scores[order], rtol=1e-5, atol=1e-6)
    assert search.search(index, clip, image=folder / paths[3])[0].score == pytest.approx(1, abs=1e-6)


def test_an_index_of_other_weights_is_refused(clip, other_clip, folder, tmp_path):
    quiet(clip, folder, tmp_path / "index")
    index = Index.open(tmp_path / "index")
    both = f"{clip.fingerprint[:16]}.*{other_clip.fingerprint[:16]}"
    with pytest.raises(SearchError, match=both):
        search.search(index, other_clip, text="a red circle")
    with pytest.raises(SearchError, match=both):
        quiet(other_clip, folder, tmp_path / "index")
    assert len(Index.open(tmp_path / "index")) == 12, "the refused call changed nothing"


def test_invalid_queries_are_refused(clip, folder, tmp_path):
    quiet(clip, folder, tmp_path / "index")
    index = Index.open(tmp_path / "index")
    with pytest.raises(SearchError, match="either a text or an image"):
        search.search(index, clip)
    with pytest.raises(SearchError, match="either a text or an image"):
        search.search(index, clip, text="a", image=folder / index.paths[0])
    with pytest.raises(SearchError, match="k = 0"):
        search.search(index, clip, text="a", k=0)


# ---------------------------------------------------------------------------------------------------------------------
# Files in folders


def odd_files(folder, drawn):
    """Writes files of many kinds; returns the readable ones, the broken ones, and the number of others by suffix."""
    folder.mkdir()
    picture = drawn("a red circle", (40, 30))
    readable = ["plain.jpg", "web.webp", "bits.bmp", "scan.tiff", "scan2.tif", "UPPER.PNG", "with space.jpeg"]
    readable += ["überraschung ☃ 日本.png", "we<b>ird & 'quoted'.png", "deep/er/and deeper/x.png", "-dash.png"]
    for name in readable:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(folder / name)
    undecodable = os.fsdecode(b"latin-\xe9.png")  # a name that is no valid UTF-8
    picture.save(folder / undecodable)
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(np.arange(0, 60_000, 100, dtype=np.uint16).reshape(20, 30)).save(folder / "sixteen.png")
    picture.convert("P").save(folder / "palette.png")
    picture.convert("LA").save(folder / "grey-alpha.png")
    frames = [drawn("a red circle"), drawn("a blue square")]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:], duration=50)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    picture.save(folder / "rotated.jpg", exif=exif, quality=95)
    readable += [undecodable, "cmyk.jpg", "sixteen.png", "palette.png", "grey-alpha.png", "moving.gif", "rotated.jpg"]

    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("this is no picture")
    jpeg = io.BytesIO()
    Image.effect_noise((200, 200), 90).save(jpeg, "JPEG")
    (folder / "cut.jpg").write_bytes(jpeg.getvalue()[:2000])
    side = int(MAX_PIXELS**0.5) + 1
    Image.new("1", (side, side)).save(folder / "bomb.png")
    os.symlink(folder / "nowhere.jpg", folder / "dangling.jpg")
    os.mkfifo(folder / "pipe.jpg")
    broken = ["empty.jpg", "text.jpg", "cut.jpg", "bomb.png", "dangling.jpg", "pipe.jpg"]

    (folder / "notes.txt").write_text("…")
    (folder / "clip.MP4").touch()
    (folder / "README").touch()
    picture.save(folder / ".hidden.png")
    (folder / ".thumbnails").mkdir()
    picture.save(folder / ".thumbnails" / "t.png")
    os.symlink(folder / "plain.jpg", folder / "link.jpg")
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    picture.save(elsewhere / "far.jfif", "JPEG")
    os.symlink(folder, elsewhere / "circle")
    os.symlink(elsewhere, folder / "album")
    return [*readable, "link.jpg", "album/far.jfif"], broken, {".txt": 1, ".mp4": 1, "no suffix": 1}


def test_odd_files_are_indexed_or_listed(clip, tmp_path, drawn):
    folder, out = tmp_path / "photos", tmp_path / "index"
    readable, broken, ignored = odd_files(folder, drawn)
    report = quiet(clip, folder, out, batch_size=7)
    index = Index.open(out)
    assert sorted(index.paths) == sorted(readable)
    assert sorted(report.broken) == sorted(broken)
    assert dict(report.ignored) == ignored
    assert (report.indexed, report.encoded, report.reused, report.dropped) == (len(readable), len(readable), 0, 0)
    listed = {row["path"]: row["reason"] for row in map(json.loads, (out / "broken.jsonl").read_text().splitlines())}
    assert listed == report.broken
    words = {
        "bomb.png": "pixels",
        "dangling.jpg": "No such file",
        "pipe.jpg": "not a regular file",
        "cut.jpg": "truncated",
    }
    for path, word in words.items():
        assert word in listed[path], listed[path]

    row = dict(zip(index.paths, index.embeddings, strict=True))
    np.testing.assert_allclose(row["moving.gif"], clip.encode_image([drawn("a red circle")])[0], atol=0.05)
    with Image.open(folder / "rotated.jpg") as image:
        upright = Image.fromarray(np.asarray(image.transpose(Image.Transpose.ROTATE_270)))  # without its EXIF
    np.testing.assert_allclose(row["rotated.jpg"], clip.encode_image([upright])[0], rtol=1e-5, atol=1e-6)
    hits = search.search(index, clip, text="a red circle", k=99)
    assert sorted(str(hit.path.relative_to(folder.resolve())) for hit in hits) == sorted(readable)
    assert display_path(os.fsdecode(b"latin-\xe9.png")) == "latin-\ufffd.png"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_files_without_permission_are_listed(clip, folder, tmp_path):
    (folder / "a").chmod(0)
    (folder / "b" / "01.png").chmod(0)
    try:
        report = quiet(clip, folder, tmp_path / "index")
    finally:
        (folder / "a").chmod(0o755)
    assert set(report.broken) == {"a", "b/01.png"} and report.indexed == 7


def test_linked_folders_are_walked_and_links_back_are_not(tmp_path):
    """Two folders that link to each other, and one outside."""
    for name in ("photos/a", "photos/b", "outside"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "x.png").write_bytes(b"")
    for link, target in (("photos/a/b", "photos/b"), ("photos/b/a", "photos/a"), ("photos/c", "outside")):
        (tmp_path / link).symlink_to(tmp_path / target)
    files, broken, _ = search._scan(tmp_path / "photos", {tmp_path / "index"})
    assert sorted(files) == ["a/b/x.png", "a/x.png", "b/a/x.png", "b/x.png", "c/x.png"] and not broken


def test_folders_without_pictures(clip, tmp_path):
    with pytest.raises(SearchError, match="nowhere: no such folder"):
        quiet(clip, tmp_path / "nowhere", tmp_path / "index")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(SearchError, match="empty: no images"):
        quiet(clip, empty, tmp_path / "index")
    (empty / "notes.txt").touch()
    with pytest.raises(SearchError, match=r"no images .*1 file\(s\) of other kinds"):
        quiet(clip, empty, tmp_path / "index")
    assert not (tmp_path / "index").exists()
    (empty / "a.jpg").write_text("no picture")
    with pytest.raises(SearchError, match="no image can be read; 1 cannot be read, such as a.jpg: not a readable"):
        quiet(clip, empty, tmp_path / "index")
    with pytest.raises(SearchError, match="holds no images"):
        search.search(Index.open(tmp_path / "index"), clip, text="a red circle")


# ---------------------------------------------------------------------------------------------------------------------
# Updates


def counting(monkeypatch, clip):
    """Patches `encode_image`; returns a list of the number of images in each later call."""
    counts = []
    encode = type(clip).encode_image

    def encode_and_count(self, images, *args):
        counts.append(len(images))
        return encode(self, images, *args)

    monkeypatch.setattr(type(clip), "encode_image", encode_and_count)
    return counts


def test_only_what_changed_is_encoded_again(clip, folder, tmp_path, drawn, monkeypatch):
    out = tmp_path / "index"
    quiet(clip, folder, out)
    before = dict(zip(Index.open(out).paths, Index.open(out).embeddings, strict=True))
    counts = counting(monkeypatch, clip)
    report = quiet(clip, folder, out)
    assert counts == [] and (report.indexed, report.encoded, report.reused) == (12, 0, 12)

    drawn("a yellow square", (31, 31)).save(folder / "a" / "00.png")  # changed
    (folder / "b" / "01.png").unlink()  # deleted
    drawn("a yellow circle").save(folder / "new.png")
    (folder / "c" / "02.png").write_text("broken now")
    report = quiet(clip, folder, out)
    assert (report.indexed, report.encoded, report.reused, report.dropped) == (11, 2, 9, 3)
    assert list(report.broken) == ["c/02.png"] and sum(counts) == 2
    index = Index.open(out)
    assert index.complete and "b/01.png" not in index.paths and "c/02.png" not in index.paths
    after = dict(zip(index.paths, index.embeddings, strict=True))
    for path, row in after.items():
        expected_row = before[path] if path not in ("a/00.png", "new.png") else expected(clip, folder, [path])[0]
        np.testing.assert_allclose(row, expected_row, rtol=1e-5, atol=1e-6)
    assert not np.allclose(after["a/00.png"], before["a/00.png"], atol=1e-3)
    assert sorted(p.name for p in out.iterdir()) == sorted(
        ["lock", "meta.json", "broken.jsonl", *(f"{p}.{s}" for p in meta(out)["parts"] for s in ("npy", "jsonl"))]
    ), "no old part is left"


def meta(out):
    return json.loads((out / "meta.json").read_text())


def test_shares_of_several_machines_joined_are_the_index_of_one(clip, folder, tmp_path, drawn, monkeypatch):
    (folder / "broken.png").write_bytes(b"none")
    quiet(clip, folder, tmp_path / "single")
    single = Index.open(tmp_path / "single")
    encoded = []
    encode = type(clip).encode_image
    monkeypatch.setattr(type(clip), "encode_image", lambda self, x, b: encoded.extend(x) or encode(self, x, b))
    out = folder / "index"  # shares inside of the folder hold no pictures
    reports = [quiet(clip, folder, out, part=(i, 3)) for i in (1, 2)]
    assert all(0 < report.indexed < 12 for report in reports) and not out.exists()
    assert quiet(clip, folder, out, part=(2, 3)).encoded == 0
    # The third machine never came: joining encodes its share.
    report = quiet(clip, folder, out)
    assert report.indexed == 12 and report.reused == sum(r.indexed for r in reports) and len(encoded) == 12
    index = Index.open(out)
    assert index.paths == single.paths and index.complete and list(report.broken) == ["broken.png"]
    np.testing.assert_allclose(index.embeddings, single.embeddings, atol=1e-6)
    assert not list(folder.glob("index.*")), "joined shares are removed"

    drawn("a red circle").save(folder / "new.png")
    reports = [quiet(clip, folder, out, part=(i, 2)) for i in (1, 2)]
    assert sum(r.encoded for r in reports) == 1 and sum(r.indexed for r in reports) == 13
    assert sum(r.dropped for r in reports) == 0
    report = quiet(clip, folder, out)
    assert (report.indexed, report.encoded) == (13, 0)


def test_shares_that_do_not_belong_to_the_index_are_refused(clip, other_clip, folder, tmp_path):
    quiet(other_clip, folder, tmp_path / "index", part=(1, 2))
    with pytest.raises(SearchError, match="index.1-of-2 was made with other weights"):
        quiet(clip, folder, tmp_path / "index")
    with (
        index_files.lock_index(tmp_path / "index.1-of-2"),
        pytest.raises(SearchError, match="index.1-of-2 is being built by another process"),
    ):
        quiet(other_clip, folder, tmp_path / "index")
    # A share with no picture of its own, or with broken ones alone, is no mistake.
    (folder / "broken.png").write_bytes(b"none")
    for share in range(1, 30):
        quiet(other_clip, folder, tmp_path / "index", part=(share, 29))
    assert quiet(other_clip, folder, tmp_path / "index").encoded == 0


@pytest.mark.parametrize("stop", range(5))
def test_an_interrupted_removal_of_a_share_leaves_an_index_or_nothing(clip, folder, tmp_path, monkeypatch, stop):
    quiet(clip, folder, tmp_path / "index", part=(1, 1))
    share, removed = tmp_path / "index.1-of-1", []
    unlink = type(share).unlink

    def killed(self, *arguments, **options):
        if len(removed) == stop:
            raise KeyboardInterrupt
        removed.append(self)
        unlink(self, *arguments, **options)

    monkeypatch.setattr(type(share), "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        index_files.remove_index(share)
    monkeypatch.undo()
    assert quiet(clip, folder, tmp_path / "index").indexed == 12
    assert not share.exists()


def test_the_index_may_lie_inside_the_folder(clip, folder):
    quiet(clip, folder, folder / "index")
    assert quiet(clip, folder, folder / "index").reused == 12


def test_directories_that_are_something_else_are_left_alone(clip, folder, tmp_path):
    with pytest.raises(SearchError, match="is not an index: it holds a, b, c"):
        quiet(clip, folder, folder)
    quiet(clip, folder, tmp_path / "index")
    shutil.copytree(folder, tmp_path / "other")
    with pytest.raises(SearchError, match="is the index of .*photos, not of .*other"):
        quiet(clip, tmp_path / "other", tmp_path / "index")
    (tmp_path / "file").touch()
    with pytest.raises(SearchError, match="is a file"):
        quiet(clip, folder, tmp_path / "file")
    assert sorted(p.name for p in folder.iterdir()) == ["a", "b", "c", "lock"]


def test_damaged_indices_are_refused(clip, folder, tmp_path):
    with pytest.raises(SearchError, match="no index found; make one with"):
        Index.open(tmp_path / "nowhere")
    out = tmp_path / "index"
    quiet(clip, folder, out)
    text = (out / "meta.json").read_text()
    part = meta(out)["parts"][0]
    for broken, words in (("{", "is not the metadata"), (text.replace('"version": 2', '"version": 3'), "version 3")):
        (out / "meta.json").write_text(broken)
        with pytest.raises(SearchError, match=words):
            Index.open(out)
    (out / "meta.json").write_text(text)
    lines = (out / f"{part}.jsonl").read_text()
    (out / f"{part}.jsonl").write_text("".join(lines.splitlines(keepends=True)[:-1]))
    with pytest.raises(SearchError, match=r"\[12, 16\] while .* describes 11"):
        Index.open(out)
    (out / f"{part}.npy").write_bytes((out / f"{part}.npy").read_bytes()[:100])
    with pytest.raises(SearchError, match="cannot be read.*index again"):
        Index.open(out)


def test_only_one_process_builds_an_index(clip, folder, tmp_path):
    with index_files.lock_index(tmp_path / "index"), pytest.raises(SearchError, match="being built by another process"):
        quiet(clip, folder, tmp_path / "index")
    assert quiet(clip, folder, tmp_path / "index").indexed == 12


# ---------------------------------------------------------------------------------------------------------------------
# Interruptions


@pytest.mark.parametrize("call", range(30))
def test_a_build_that_dies_at_any_write_is_completed(clip, folder, tmp_path, monkeypatch, call):
    """Stops the build before its n-th change of the directory, then completes it."""
    out, kept = (
        tmp_path / "index",
        expected(clip, folder, sorted(str(p.relative_to(folder)) for p in folder.rglob("*.png"))),
    )
    monkeypatch.setattr(index_files, "COMMIT_SECONDS", 0.0)  # every batch is committed
    changes = 0

    class Killed(BaseException):
        pass

    def dying(function):
        def change(*args, **kwargs):
            nonlocal changes
            changes += 1
            if changes > call:
                raise Killed
            return function(*args, **kwargs)

        return change

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", dying(os.fsync))
        patched.setattr("pathlib.Path.replace", dying(os.replace))
        patched.setattr("pathlib.Path.unlink", dying(os.unlink))
        with pytest.raises(Killed):
            quiet(clip, folder, out, batch_size=4)
    if (out / "meta.json").exists():
        partial = Index.open(out)
        assert len(partial) in (0, 4, 8, 12) and (len(partial) == 12 or not partial.complete)
        for path, row in zip(partial.paths, partial.embeddings, strict=True):
            np.testing.assert_allclose(row, expected(clip, folder, [path])[0], rtol=1e-5, atol=1e-6)
    report = quiet(clip, folder, out, batch_size=4)
    index = Index.open(out)
    assert index.complete and report.indexed == 12 and report.dropped == 0
    np.testing.assert_allclose(index.embeddings, kept, rtol=1e-5, atol=1e-6)
    assert len(list(out.iterdir())) == 5, "meta.json, broken.jsonl, lock and one part of two files"


_SLOW_BUILD = """
import sys, time
from pathlib import Path
from clip_jax import clip, index_files, search
index_files.COMMIT_SECONDS = 0.0
model = clip.load(sys.argv[1])
encode = clip.Clip.encode_image
clip.Clip.encode_image = lambda *a: (time.sleep(0.05), encode(*a))[1]
search.build(model, sys.argv[2], sys.argv[3], batch_size=8, progress=False)
"""


@pytest.mark.slow
def test_sigkill_loses_nothing_that_was_committed(tiny, trained, tmp_path, drawn, captions):
    folder, out = tmp_path / "photos", tmp_path / "index"
    folder.mkdir()
    for i in range(160):
        drawn(captions[i % 12], (20 + i % 7, 24)).save(folder / f"{i:03d}.png")
    arguments = [sys.executable, "-c", _SLOW_BUILD, str(tiny[1]), str(folder), str(out)]
    process = subprocess.Popen(arguments, cwd=os.getcwd(), env=os.environ | {"PYTHONPATH": os.getcwd()})
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (out / "meta.json").exists() and len(meta(out)["parts"]) >= 3:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL, "it was killed before it finished"
    partial = Index.open(out)
    assert 24 <= len(partial) < 160 and not partial.complete
    report = quiet(trained, folder, out)
    assert report.reused >= len(partial) and report.indexed == 160
    index = Index.open(out)
    wanted = expected(trained, folder, index.paths)
    np.testing.assert_allclose(index.embeddings, wanted, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Approximate search


def test_the_ivf_index_finds_nearly_all_nearest_rows(tmp_path):
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((50, 32))
    rows = centres[rng.integers(0, 50, 20_000)] + 0.3 * rng.standard_normal((20_000, 32))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    nearest.write_ivf_index(tmp_path / "rows.faiss", rows)
    ivf_index = nearest.IVFIndex(tmp_path / "rows.faiss")
    num_common = 0
    for query in rows[rng.choice(len(rows), 50, replace=False)].astype(np.float32):
        scores, chosen = ivf_index.search(rows, query, 10)
        exact_scores, expected = map(np.asarray, nearest.search_exact(rows.astype(np.float32), query, 10))
        np.testing.assert_allclose(scores, rows[chosen].astype(np.float32) @ query, rtol=1e-6)
        assert (np.diff(scores) <= 0).all() and scores[0] == pytest.approx(exact_scores[0], abs=1e-6)
        num_common += len(set(chosen.tolist()) & set(expected.tolist()))
    assert num_common >= 0.95 * 50 * 10


def test_an_approximate_index_answers_until_it_changes(clip, folder, tmp_path, drawn):
    out = tmp_path / "index"
    quiet(clip, folder, out, approximate=True)
    index = Index.open(out)
    assert index.ivf_file.is_file()
    hits, exact = (search.search(index, clip, text="a red circle", k=12, exact=exact) for exact in (False, True))
    assert [hit.path for hit in hits] == [hit.path for hit in exact]  # twelve rows are one cluster
    np.testing.assert_allclose([hit.score for hit in hits], [hit.score for hit in exact], rtol=1e-5)
    index.ivf_file.write_bytes(b"no clusters")
    with pytest.raises(SearchError, match="cannot be read.*index again, or search exactly"):
        search.search(Index.open(out), clip, text="a red circle")
    drawn("a red circle").save(folder / "new.png")
    quiet(clip, folder, out)
    assert Index.open(out).ivf_file is None and not list(out.glob("*.faiss"))


def test_approximate_search_without_faiss(clip, folder, tmp_path, monkeypatch):
    quiet(clip, folder, tmp_path / "index", approximate=True)
    monkeypatch.setitem(sys.modules, "faiss", None)
    index = Index.open(tmp_path / "index")
    with pytest.raises(SearchError, match=r"needs faiss: pip install '.\[faiss\]', or search exactly"):
        search.search(index, clip, text="a red circle")
    assert search.search(index, clip, text="a red circle", exact=True)
    with pytest.raises(SearchError, match="needs faiss"):
        quiet(clip, folder, tmp_path / "another", approximate=True)
