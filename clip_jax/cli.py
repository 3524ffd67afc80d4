"""The command `clip-jax`: classifies images, indexes and searches folders, evaluates and describes models.

User errors print one line and return exit code 2.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import sys
from pathlib import Path

from clip_jax.known_models import MODELS
from train_jax import arguments as arguments_lib
from train_jax import command, paths
from train_jax.errors import UserError
from train_jax.weights import hub, known_models

_EXAMPLES = {
    "": """\
examples:
  clip-jax classify cat.jpg dog.png --model runs/clip-shapes --labels "a cat,a dog"
  clip-jax index photos --model runs/clip-shapes --out photos.index
  clip-jax search photos.index "a dog on a beach" --html hits.html
  clip-jax verify hf:openai/clip-vit-base-patch32

clip-jax COMMAND --help describes each command.""",
    "classify": """\
examples:
  clip-jax classify shape.png --model runs/demo/clip --labels "red circle,blue star,green ring"
  clip-jax classify *.jpg --model DIR --labels "cat,dog" --template "a photo of a {}." --template "a drawing of a {}."
  clip-jax classify *.jpg --model DIR --labels @labels.txt --json > probabilities.json""",
    "index": """\
examples:
  clip-jax index photos --model runs/clip-shapes --out photos.index
  clip-jax index millions --model hf:openai/clip-vit-base-patch32 --out millions.index --half --approximate
  clip-jax index millions --model hf:openai/clip-vit-base-patch32 --out millions.index --half --part 2/4

Running the same command again continues after an interruption, and updates the index for new, changed and deleted files.
Unreadable files are listed at the end and in OUT/broken.jsonl. To index on four machines, run it with --part 1/4 to
--part 4/4, then once without --part to merge the shares.""",
    "evaluate": """\
examples:
  clip-jax evaluate runs/clip-digits --data digits
  clip-jax evaluate hf:openai/clip-vit-base-patch32 ViT-B-32.pt --data tfds:cifar10 tfds:oxford_iiit_pet \\
      --tasks zero_shot,linear_probe,knn --templates openai-imagenet --features features --md > table.md
  clip-jax evaluate DIR --data folder:photos --split all --tasks retrieval

Every result is a line of JSON in OUT as soon as it is there; the same command again evaluates what is missing. Intervals
are 95 %: Wilson's for shares of images or queries, for few-shot accuracies Student's t over random samples. linear_probe
chooses its L2 penalty on a fifth of the training images (arXiv 2103.00020, appendix A.3), knn is DINO's weighted
classifier (arXiv 2104.14294). In retrieval an image is found if one of its captions is, and equal captions count once.""",
    "heatmap": """\
examples:
  clip-jax heatmap street.jpg "a bicycle" "a traffic light" --model DIR --png heat.png

Shows the cosine of each image patch with each text; hot colours are high values. Each map has its own colour scale.""",
    "verify": """\
examples:
  clip-jax verify runs/clip-shapes
  clip-jax verify ViT-B-32.pt

Prints the architecture, preprocessing and files of a model. If torch and transformers are installed, also compares the
model of a Hugging Face directory layer by layer with transformers. A relative difference above 1e-4 returns exit code 1.""",
    "export": """\
examples:
  clip-jax export runs/clip-shapes --out exported
  clip-jax export hf:openai/clip-vit-base-patch32 --out exported --platforms cpu,cuda

image_tower.jax_export maps uint8 [n, size, size, 3] and text_tower.jax_export token ids int32 [n, length] to embeddings
of unit norm, with the weights inside: jax.export.deserialize opens them, and gives their portable StableHLO.
preprocess.json and tokenizer.json say how images and texts become inputs. Needs flatbuffers (the extra [export]).""",
    "models": """\
example:
  clip-jax classify photo.jpg --model clip:siglip2-b16-224 --labels "a cat,a dog"

A short name is written wherever a model is named. Its files are downloaded once, to the cache of the Hugging Face Hub.""",
    "search": """\
examples:
  clip-jax search photos.index "a small red circle above a large blue star"
  clip-jax search photos.index --image query.jpg --top 20 --png hits.png
  clip-jax search photos.index "a dog" --html hits.html --json""",
}

_PLATFORMS = ("cpu", "cuda", "tpu")  # of `clip_jax.export`, which imports JAX
_MODEL = "a run directory, a Hugging Face or open_clip directory, a weight file, hf:org/name, or a name of clip-jax models"


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns the exit code: 0, 2 for a user error, 130 if interrupted."""
    arguments = _make_parser().parse_args(arguments_lib.expand_home(argv))
    hint = "; the same command continues from here" if arguments.command in ("index", "evaluate") else ""
    return command.run_command("clip-jax", arguments, hint)


def _make_parser() -> argparse.ArgumentParser:
    parser, add = command.parser("clip-jax", "Classify and search images with CLIP, and describe models.", _EXAMPLES)

    classify = add("classify", "Print the probability of each label for each image.", _classify)
    classify.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    classify.add_argument("--model", required=True, metavar="MODEL", help=_MODEL)
    arguments_lib.add_dtype(classify)
    classify.add_argument("--labels", required=True, help="labels separated by commas, or @FILE with one per line")
    classify.add_argument(
        "--template",
        action="append",
        dest="templates",
        metavar="TEXT",
        help='prompt template with {} for the label, or @FILE with one per line (default "a photo of a {}."); the '
        "embeddings of several templates are averaged",
    )
    classify.add_argument("--top", type=int, default=5, metavar="N", help="number of labels per image (default 5)")
    classify.add_argument("--json", action="store_true", help="print all probabilities as JSON instead of a table")

    index = add("index", "Build or update the index of a folder of images.", _index)
    index.add_argument("folder", metavar="FOLDER", help="folder of images, searched recursively")
    index.add_argument("--model", required=True, metavar="MODEL", help=_MODEL)
    arguments_lib.add_dtype(index)
    index.add_argument("--out", required=True, metavar="INDEX", help="directory for the index")
    index.add_argument("--batch-size", type=int, default=64, metavar="N", help="images per batch (default 64)")
    index.add_argument("--half", action="store_true", help="store embeddings in float16, which halves the size on disk")
    index.add_argument(
        "--approximate", action="store_true", help="also build an IVF index for fast approximate search (needs faiss)"
    )

    index.add_argument("--part", metavar="I/N", help="encode only share I of N, into a directory beside INDEX")

    search = add("search", "Find the images of an index nearest to a text or an image.", _search)
    search.add_argument("index", metavar="INDEX", help="directory made by clip-jax index")
    search.add_argument("text", nargs="?", metavar="TEXT", help="query text")
    search.add_argument("--image", metavar="FILE", help="query image")
    search.add_argument("--model", metavar="MODEL", help="path of the model (default: the path stored in the index)")
    arguments_lib.add_dtype(search)
    search.add_argument("--top", type=int, default=9, metavar="N", help="number of hits (default 9)")
    search.add_argument("--exact", action="store_true", help="exact search, even in an index built with --approximate")
    search.add_argument("--html", metavar="FILE", help="file for the hits as a self-contained HTML page")
    search.add_argument("--png", metavar="FILE", help="file for the hits as a contact sheet")
    search.add_argument("--json", action="store_true", help="print the hits as JSON instead of a table")

    heatmap = add("heatmap", "Show where in an image each text matches.", _heatmap)
    heatmap.add_argument("image", metavar="IMAGE", help="image file")
    heatmap.add_argument("texts", nargs="+", metavar="TEXT", help="query texts")
    heatmap.add_argument("--model", required=True, metavar="MODEL", help=_MODEL)
    arguments_lib.add_dtype(heatmap)
    heatmap.add_argument("--png", required=True, metavar="FILE", help="file for the heat maps")

    evaluate = add("evaluate", "Evaluate models on data sets.", _evaluate)
    evaluate.add_argument("models", nargs="+", metavar="MODEL", help=_MODEL)
    evaluate.add_argument(
        "--data", required=True, nargs="+", metavar="SOURCE", help="data sources, such as digits, folder:PATH, tfds:NAME"
    )
    evaluate.add_argument(
        "--tasks",
        metavar="TASK,…",
        help="zero_shot, retrieval, linear_probe, few_shot, knn (default: zero_shot for data with labels, else retrieval)",
    )
    evaluate.add_argument(
        "--templates",
        nargs="+",
        metavar="NAME",
        help='prompt templates: names of lists such as openai-imagenet, @FILE, or texts (default "a photo of a {}.")',
    )
    evaluate.add_argument("--shots", metavar="N,…", help="numbers of images per class of few_shot (default 1,2,4,8,16)")
    evaluate.add_argument("--split", default="test", help="split to evaluate on (default test)")
    evaluate.add_argument("--train-split", default="train", metavar="SPLIT", help="split to learn from (default train)")
    evaluate.add_argument("--out", default="evaluations.jsonl", metavar="FILE", help="file of results (default %(default)s)")
    evaluate.add_argument("--again", action="store_true", help="evaluate anew what the file holds")
    evaluate.add_argument("--features", metavar="DIR", help="folder for image features, which later commands read")
    evaluate.add_argument("--batch-size", type=int, default=256, metavar="N", help="images per batch (default 256)")
    arguments_lib.add_dtype(evaluate)
    evaluate.add_argument("--data-dir", default="", metavar="DIR", help="folder of TFDS data sets (default: that of TFDS)")
    evaluate.add_argument(
        "--max-broken", type=float, default=0.0, metavar="SHARE", help="share of images that may be unreadable (default 0)"
    )
    table = evaluate.add_mutually_exclusive_group()
    table.add_argument("--md", action="store_const", const="md", dest="table", help="print the table as Markdown")
    table.add_argument("--csv", action="store_const", const="csv", dest="table", help="print all metrics as CSV")

    export = add("export", "Write the towers of a model as StableHLO programs.", _export)
    export.add_argument("model", metavar="MODEL", help=_MODEL)
    export.add_argument("--out", required=True, metavar="DIR", help="new folder of the programs")
    export.add_argument(
        "--platforms", default=",".join(_PLATFORMS), metavar="NAME,…", help="platforms of the programs (default: all)"
    )

    verify = add("verify", "Describe a model and compare its outputs with transformers.", _verify)
    verify.add_argument("model", metavar="MODEL", help=_MODEL)
    known_models.add_command(add, clip=MODELS)
    return parser


# ---------------------------------------------------------------------------------------------------------------------
# Commands


def _classify(arguments: argparse.Namespace) -> int:
    from clip_jax.clip import load
    from clip_jax.templates import read_templates
    from train_jax.data.images import BrokenSample

    labels = arguments_lib.listed(arguments.labels, "a label", "--labels")
    try:
        templates = read_templates(arguments.templates or ["a photo of a {}."])
    except ValueError as error:
        raise UserError(f"--template: {error}") from error
    if arguments.top < 1:
        raise UserError(f"--top {arguments.top} must be at least 1")
    if not any(os.path.isfile(path) for path in arguments.images):
        raise UserError(f"no image can be read; {arguments.images[0]}: No such file")
    clip = load(arguments.model, dtype=arguments.dtype)
    pictures, failures = {}, []
    for path in arguments.images:
        try:
            pictures[path] = clip.preprocess(path)  # keeping full-size photos could exhaust memory
        except BrokenSample as error:
            failures.append(f"{path}: {error}")
    if not pictures:
        raise UserError(f"no image can be read; {failures[0]}")
    for failure in failures:
        print(f"clip-jax classify: skipped {failure}", file=sys.stderr)
    probabilities = clip.classify(list(pictures.values()), labels, templates)
    if arguments.json:
        rows = [
            {"image": path, "probabilities": dict(zip(labels, map(float, row), strict=True))}
            for path, row in zip(pictures, probabilities, strict=True)
        ]
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        print(format_probabilities(list(pictures), labels, probabilities, arguments.top))
    return 2 if failures else 0


def format_probabilities(names: list[str], labels: list[str], probabilities, top: int) -> str:
    """Formats the `top` most probable labels of each image as text, with probabilities and bars."""
    width = max(map(len, labels))
    bar = max(10, min(40, shutil.get_terminal_size().columns - width - 14))
    lines = []
    for name, row in zip(names, probabilities, strict=True):
        lines.append(name)
        order = sorted(range(len(labels)), key=lambda i: -row[i])
        for i in order[:top]:
            filled = "█" * round(float(row[i]) * bar)
            lines.append(f"  {labels[i]:{width}} {100 * float(row[i]):6.2f} %  {filled}".rstrip())
        if len(order) > top:
            rest = sum(float(row[i]) for i in order[top:])
            lines.append(f"  {'…':{width}} {100 * rest:6.2f} %  the other {len(order) - top}")
    return "\n".join(lines)


def _index(arguments: argparse.Namespace) -> int:
    from clip_jax.clip import load
    from clip_jax.index_files import get_share_directory
    from clip_jax.search import build

    if arguments.batch_size < 1:
        raise UserError(f"--batch-size {arguments.batch_size} must be at least 1")
    if not Path(arguments.folder).is_dir():
        raise UserError(f"{arguments.folder}: no such folder")
    arguments_lib.check_folder(arguments.out, "--out")
    part = _parse_share(arguments.part) if arguments.part else None
    clip = load(arguments.model, dtype=arguments.dtype)
    report = build(
        clip,
        arguments.folder,
        arguments.out,
        # Absolute, so that a search from another folder finds the model.
        model=arguments.model if hub.is_name(arguments.model) else paths.absolute(arguments.model),
        batch_size=arguments.batch_size,
        half=arguments.half,
        approximate=arguments.approximate,
        part=part,
    )
    if part is None:
        print(format_report(report, arguments.out))
    else:
        print(format_report(report, str(get_share_directory(Path(arguments.out), *part))))
        print("the same command without --part merges all shares")
    return 0


def _parse_share(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--part {text} must be I/N, such as 2/4, with I from 1 to N")
    return int(match[1]), int(match[2])


def format_report(report, out: str, max_broken: int = 10) -> str:
    """Formats the report of `build` as a few lines of text. Lists at most `max_broken` unreadable files."""
    from clip_jax.index_files import display_path

    lines = [
        f"{out}: {report.indexed:,} image(s): {report.encoded:,} newly encoded, {report.reused:,} reused"
        + (f", {report.dropped:,} dropped (changed or deleted)" if report.dropped else "")
    ]
    if report.ignored:
        suffixes = ", ".join(
            f"{count} {suffix}" for suffix, count in sorted(report.ignored.items(), key=lambda x: -x[1])[:8]
        )
        lines.append(f"{sum(report.ignored.values()):,} other file(s) skipped: {suffixes}")
    if report.broken:
        lines.append(f"{len(report.broken):,} file(s) cannot be read, listed in {Path(out) / 'broken.jsonl'}:")
        lines += [f"  {display_path(path)}: {reason}" for path, reason in sorted(report.broken.items())[:max_broken]]
        if len(report.broken) > max_broken:
            lines.append(f"  … and {len(report.broken) - max_broken:,} more")
    return "\n".join(lines)


def _search(arguments: argparse.Namespace) -> int:
    from clip_jax import sheets
    from clip_jax.clip import load
    from clip_jax.index_files import display_path
    from clip_jax.search import Index, search

    if (arguments.text is None) == (arguments.image is None):
        raise UserError('pass either a text or --image FILE, as in: clip-jax search INDEX "a dog"')
    if arguments.top < 1:
        raise UserError(f"--top {arguments.top} must be at least 1")
    if arguments.png is not None:
        arguments_lib.png(arguments.png, "the contact sheet", "--png")
    arguments_lib.check_outputs(html=arguments.html, png=arguments.png)
    index = Index.open(arguments.index)
    if not index.complete:
        print(
            f"clip-jax search: {arguments.index} is unfinished ({len(index):,} images so far); the same clip-jax index "
            "command completes it",
            file=sys.stderr,
        )
    model = arguments.model or index.model
    if not hub.is_name(model) and not paths.path(model).exists():
        raise UserError(f"the model {model} does not exist: pass its path with --model DIR")
    clip, query = load(model, dtype=arguments.dtype), {"text": arguments.text, "image": arguments.image}
    hits = search(index, clip, **query, k=arguments.top, exact=arguments.exact)

    title = arguments.text if arguments.text is not None else f"like {display_path(arguments.image)}"
    section = sheets.make_hits_section(title, hits, index.folder)
    if arguments.html:
        Path(arguments.html).write_text(
            sheets.render_page(f"Search in {display_path(index.folder.name)}", [section]), "utf-8"
        )
        print(f"wrote {arguments.html}", file=sys.stderr)
    if arguments.png:
        columns = next(n for n in range(1, 7) if n * n >= len(hits) or n == 6)
        sheets.render_contact_sheet([section], columns=max(columns, 2), size=220).save(arguments.png, "PNG")
        print(f"wrote {arguments.png}", file=sys.stderr)
    if arguments.json:
        rows = [{"path": display_path(hit.path), "score": hit.score} for hit in hits]
        print(json.dumps({"query": title, "hits": rows}, indent=2, ensure_ascii=False))
    else:
        for rank, hit in enumerate(hits, 1):
            print(f"{rank:3}  {hit.score:6.3f}  {display_path(hit.path)}")
    return 0


def _heatmap(arguments: argparse.Namespace) -> int:
    from PIL import Image

    from clip_jax import sheets
    from clip_jax.clip import load

    arguments_lib.png(arguments.png, "the contact sheet", "--png")
    arguments_lib.check_outputs(png=arguments.png)
    clip = load(arguments.model, dtype=arguments.dtype)
    maps = clip.heat_map([arguments.image], arguments.texts)[0]
    model_input = Image.fromarray(clip.preprocess.square(arguments.image))
    sections = sheets.make_heat_sections(model_input, arguments.texts, maps)
    sheets.render_contact_sheet(sections, columns=min(4, 1 + len(maps)), size=256).save(arguments.png, "PNG")
    print(f"wrote {arguments.png}", file=sys.stderr)
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from clip_jax import evaluate
    from train_jax.evaluation.results import EvaluationFile

    arguments_lib.check_outputs(out=arguments.out)
    if arguments.features is not None:
        arguments_lib.check_folder(arguments.features, "--features")
    if not 0 <= arguments.max_broken < 1:
        raise UserError(f"--max-broken {arguments.max_broken} must be in [0, 1)")
    tasks = arguments_lib.listed(arguments.tasks, "a task", "--tasks") if arguments.tasks is not None else []
    if unknown := [task for task in tasks if task not in evaluate.TASKS]:
        raise UserError(f"--tasks {unknown[0]}: tasks are {', '.join(evaluate.TASKS)}")
    options = {"split": arguments.split, "train_split": arguments.train_split, "batch_size": arguments.batch_size}
    if arguments.templates is not None:
        options["templates"] = tuple(arguments_lib.lines(arguments.templates, "a template"))
    if arguments.shots is not None:
        shots = arguments_lib.listed(arguments.shots, "a number", "--shots")
        if not all(n.isdigit() and int(n) for n in shots):
            raise UserError(f"--shots {arguments.shots} must be numbers of 1 and more, separated by commas")
        options["shots"] = tuple(map(int, shots))
    data_options = {"data_dir": arguments.data_dir, "max_broken_eval": arguments.max_broken}
    benchmark = evaluate.Benchmark(list(dict.fromkeys(arguments.data)), tasks, options, data_options)
    file = EvaluationFile(paths.absolute(arguments.out), again=arguments.again)
    features = Path(arguments.features) if arguments.features is not None else None
    results = evaluate.evaluate(arguments.models, benchmark, file, dtype=arguments.dtype, features=features)
    rows = []
    with contextlib.redirect_stdout(sys.stderr):  # TFDS prints what it prepares; standard output has the table alone
        for row, is_new in results:
            rows.append(row)
            note = f"{row['seconds']:.1f} s" if is_new else f"already in {arguments.out}"
            print(f"{row['model']} {row['evaluator']} on {row['source']}:{row['split']}: {note}")
    print(evaluate.format_table(rows, arguments.table or "text"))
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from clip_jax.clip import load
    from clip_jax.export import export_towers

    platforms = arguments_lib.listed(arguments.platforms, "a platform", "--platforms")
    arguments_lib.check_folder(arguments.out, "--out")
    try:
        files = export_towers(load(arguments.model, dtype="float32"), arguments.out, platforms)
    except (ImportError, ValueError, FileExistsError) as error:
        raise UserError(f"--out {arguments.out}: {error}") from error
    for file in files:
        print(f"{file}  {file.stat().st_size:,} bytes")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from clip_jax import verify
    from clip_jax.pretrained import open_checkpoint

    checkpoint = open_checkpoint(arguments.model)
    module = checkpoint.module()
    checkpoint.variables(module)  # raises LoadError unless the weights have the names and shapes of the configuration
    for name, value in verify.describe(checkpoint, module).items():
        print(f"{name:<14} {value}")
    if not verify.is_comparable(checkpoint):
        return 0
    if not verify.is_peer_installed():
        print("\nnot compared with transformers: torch and transformers are not installed (pip install '.[peers]')")
        return 0
    rows = verify.compare(arguments.model)
    print(f"\n{'beside transformers':<20} {'largest difference':>18} {'relative':>10}")
    for row in rows:
        print(f"{row.layer:<20} {row.largest:18.2e} {row.relative:10.1e}")
    return int(max(row.relative for row in rows) > 1e-4)


if __name__ == "__main__":
    sys.exit(main())
