"""The models of the page by kind: those of a folder of runs, named public ones, and commands that make what is missing."""

import dataclasses
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from clip_jax.index_files import SearchError, is_index, read_meta
from train_jax import run_directory
from train_jax.command import DEMOS, open_demo
from train_jax.errors import LoadError, UserError

KINDS = {
    "clip": "CLIP",
    "index": "index of pictures",
    "vqgan": "VQGAN",
    "dalle": "DALL-E",
    "unclip": "decoder of unCLIP",
}
_TASKS = {
    "clip_jax.task": "clip",
    "vqgan_jax.task": "vqgan",
    "dalle_jax.task": "dalle",
    "dalle_jax.unclip.decoder_task": "unclip",
}
_DEPTH = 2  # levels below the folder where runs are looked for


@dataclasses.dataclass(frozen=True)
class Runs:
    """Models and indexes.

    Attributes:
      folder: the folder, as the user wrote it.
      paths: kind -> paths of the run directories and indexes below `folder`, and then, as strings, further models.
      data: one of `DEMOS`, by whose configs the runs of the folder were trained; the first if by neither's.
      damaged: sentences on runs that cannot be read.
    """

    folder: Path
    paths: Mapping[str, tuple[Path | str, ...]]
    data: str
    damaged: tuple[str, ...]

    def missing(self, kinds: tuple[str, ...]) -> list[str]:
        """Returns those of the kinds of which there is no model."""
        return [kind for kind in kinds if not self.paths[kind]]

    def commands(self, kind: str) -> list[str]:
        """Returns the command lines that make a model of this kind in the folder."""

        def train(name: str, config: str, **artifacts: Path | str) -> str:
            options = [f"--config.{key}.path={path}" for key, path in artifacts.items()]
            return shlex.join(["train-jax", f"--config={config}", f"--workdir={self.folder / name}", *options])

        index = ["clip-jax", "index", "IMAGES", "--model", str(self._first("clip")), "--out", str(self.folder / "index")]
        clip, vqgan = (self._first(kind) for kind in ("clip", "vqgan"))
        configs, prior = open_demo(self.data).CONFIGS, self.folder / "unclip-prior"
        return {
            "clip": [train("clip", configs["clip"])],
            "vqgan": [train("vqgan", configs["vqgan"])],
            "dalle": [train("dalle", configs["dalle"], vqgan=vqgan)],
            "index": [shlex.join(index)],
            "unclip": [
                train(prior.name, f"unclip/prior_{self.data}", clip=clip),
                train("unclip-decoder", f"unclip/decoder_{self.data}", clip=clip, prior=prior),
            ],
        }[kind]

    def _first(self, kind: str) -> Path | str:
        return (*self.paths[kind], self.folder / kind)[0]


def find_runs(folder: str | Path, named: Mapping[str, Sequence[str]] | None = None) -> Runs:
    """Finds runs and indexes in a folder and two levels below, sorted by path.

    A folder that is one itself is not searched further. Raises UserError if there is no such folder.

    Args:
      named: kind -> further models, such as public ones; see `load` of each family.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; make one with multimodal-jax demo, which writes runs/demo")
    paths, damaged = {kind: [] for kind in KINDS}, []
    sources = []
    for path, kind, source in _walk(folder, _DEPTH, damaged):
        paths[kind].append(path)
        sources.append(source)
    data = next((name for name in DEMOS if any(f"{name}/" in source for source in sources)), DEMOS[0])
    models = {kind: (*found, *(named or {}).get(kind, ())) for kind, found in paths.items()}
    return Runs(folder, models, data, tuple(damaged))


def _walk(folder: Path, depth: int, damaged: list[str]) -> Iterator[tuple[Path, str, str]]:
    """Yields path, kind and source of the data of each run and index; an index has no source."""
    try:
        config = run_directory.read_config(folder)
        kind = _TASKS.get(config["task"]) if config is not None else _index_kind(folder)
        is_run = config is not None or kind is not None
    except (LoadError, SearchError) as error:
        damaged.append(str(error))
        return
    if kind is not None:
        yield folder, kind, str((config or {}).get("data", {}).get("source", ""))
    if is_run or not depth:
        return
    try:
        below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        damaged.append(f"{folder}: {error.strerror}")
        return
    for path in below:
        yield from _walk(path, depth - 1, damaged)


def _index_kind(folder: Path) -> str | None:
    """Returns "index" for an index. Raises SearchError if it cannot be read."""
    return "index" if is_index(folder) and read_meta(folder) is not None else None
