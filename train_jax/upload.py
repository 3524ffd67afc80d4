"""Upload of run directories, saved weights and loaded models to the Hugging Face Hub, with their cards.

    push("runs/clip-shapes", "org/name", licence="apache-2.0")      # "hf:org/name", which `load` opens

Of a run directory, the weights for inference are uploaded, the files that they need, and those that tell of the run. The
token is that of `hf auth login`, or of the variable HF_TOKEN. `train-jax push` is the same on the command line.
"""

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
from ml_collections import ConfigDict

from train_jax import model_card, paths, run_directory, trained_weights
from train_jax import task as task_lib
from train_jax.errors import UserError
from train_jax.model_card import Kind

_RECORDS = ("config.json", "artifacts.json", "environment.json", "metrics.jsonl", "evaluations.jsonl")  # of a run directory
_BRANCH = re.compile(r"\w[\w./-]*")
MODEL = "model.safetensors"  # a loaded model as one file


def push(
    directory: Any,
    repository: str,
    *,
    private: bool = True,
    revision: str | None = None,
    licence: str | None = None,
    step: int | None = None,
) -> str:
    """Uploads a run directory, or a folder of saved weights with a card, to the hub. Returns its address, "hf:org/name".

    Args:
      directory: path of a run directory, of which the weights for inference, the files that they need and those that tell of
        the run are uploaded; or of a folder with a README.md, which is uploaded as it is.
      repository: "org/name", created if it does not exist. The code of the card loads from there.
      private: whether only its owners may see the repository; an existing public one is refused.
      revision: branch, created if it does not exist; None: the main branch.
      licence: licence of the weights by the hub's name, such as "apache-2.0", if the card is made here; None: not stated.
      step: checkpoint of a run directory; None: the newest readable one.

    Raises UserError before the upload for a malformed name, without a token, for a repository that this account may not
    write to, and for a folder that is neither.
    """
    if not isinstance(directory, str | os.PathLike):
        kind = type(directory).__name__
        raise UserError(f"a loaded {kind} cannot be uploaded: name its run directory, or a folder of saved weights")
    return upload(_open(paths.absolute(directory), licence, step), repository, private=private, revision=revision)


def push_model(
    model: Any, repository: str, *, save: Callable, kind: Kind, licence: str | None = None, **options: Any
) -> str:
    """Uploads a loaded model as one file, `model.safetensors`. Returns its address, "hf:org/name/model.safetensors".

    Args:
      save: `(model, path)`, which writes the file.
      kind: what the card tells of the model.
      licence, options: see `push`; a loaded model has no `step`.
    """
    if options.pop("step", None) is not None:
        raise UserError("step = …: a loaded model has the weights of one step already; name the run directory instead")
    code = [kind.code.replace(model_card.FOLDER, f"{model_card.FOLDER}/{MODEL}")]
    card = model_card.make(kind, model.name, code=code, licence=licence)

    def write(folder: Path) -> None:
        save(model, folder / MODEL)
        model_card.write(folder, card)

    return re.sub("(@|$)", rf"/{MODEL}\1", upload(write, repository, **options), count=1)


def upload(
    write: Callable[[Path], None], repository: str, *, private: bool = True, revision: str | None = None
) -> str:
    """Uploads what `write(folder)` writes into an empty folder, a card among it. For the rest, see `push`."""
    _check_names(repository, revision)
    api, writable = _log_in()
    with tempfile.TemporaryDirectory(prefix="push-") as name:
        folder = Path(name)
        write(folder)
        card = folder / model_card.FILE
        text = model_card.address(card.read_text("utf-8"), repository)
        card.unlink()  # it may be a link to the user's file
        model_card.write(folder, text)
        with _explained(f"{repository} cannot be written: this token is of {writable}"):
            api.create_repo(repository, private=private, exist_ok=True)
            is_private = api.model_info(repository).private
            if revision is not None:
                api.create_branch(repository, branch=revision, exist_ok=True)
        if private and not is_private:
            raise UserError(f"{repository} is public already: add --public (private=False), or name another repository")
        with _explained(f"{repository}: the upload failed; the same command repeats it"):
            api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                revision=revision,
                commit_message="Upload weights and card",
                delete_patterns="checkpoints/*",  # of an earlier upload: `load` takes the newest step
            )
    return f"hf:{repository}" + (f"@{revision}" if revision else "")


def _check_names(repository: str, revision: str | None) -> None:
    """Raises UserError for a malformed name of a repository or of a branch."""
    try:
        huggingface_hub.utils.validate_repo_id(repository)
        is_valid = repository.count("/") == 1
    except huggingface_hub.utils.HFValidationError:
        is_valid = False
    if not is_valid:
        raise UserError(f"{repository!r} is no repository of the hub: write ORG/NAME in letters, digits, '-', '_' and '.'")
    if revision is not None and not _BRANCH.fullmatch(revision):
        raise UserError(f"revision {revision!r} is no name of a branch: write letters, digits, '-', '_', '.' and '/'")


def _log_in() -> tuple["huggingface_hub.HfApi", str]:
    """Returns the hub's client, and the accounts of the token as words. Raises UserError without a valid token."""
    if huggingface_hub.get_token() is None:
        raise UserError(
            "there is no token of the Hugging Face Hub: run `hf auth login`, or set HF_TOKEN to a token that may write"
        )
    api = huggingface_hub.HfApi(library_name=model_card.LIBRARY)
    with _explained("the Hugging Face Hub refuses the token, or cannot be reached; `hf auth login` sets another token"):
        account = api.whoami()
    organisations = ", ".join(x["name"] for x in account.get("orgs", ()))
    return api, f"the account {account['name']}" + (f" in {organisations}" if organisations else ", in no organisation")


@contextlib.contextmanager
def _explained(message: str) -> Iterator[None]:
    """Turns an error of the hub into a UserError of one line: `message` and the hub's reason."""
    try:
        yield
    except Exception as error:  # error classes differ between versions of huggingface_hub
        reason = " ".join(str(error).split())
        raise UserError(f"{message} ({type(error).__name__}: {reason})") from error


def _open(directory: paths.AnyPath, licence: str | None, step: int | None) -> Callable[[Path], None]:
    """Checks a directory. Returns a function that writes what is uploaded of it into a folder."""
    config = run_directory.read_config(directory) if directory.is_dir() else None
    has_card = (directory / model_card.FILE).is_file()
    if has_card and licence is not None:
        raise UserError(f"licence {licence!r}: {directory} has a card; state the licence at the top of its README.md")
    if config is not None:
        return lambda folder: _write_run(directory, config, folder, licence, step)
    if step is not None:
        raise UserError(f"step = {step}: {directory} is no run directory of train-jax, so it has no checkpoints by step")
    if not has_card:
        raise UserError(
            f"{directory} cannot be uploaded: name a run directory, or a folder of saved weights with a {model_card.FILE}"
        )
    return lambda folder: _link_files(paths.local(directory), folder)


def _write_run(directory: paths.AnyPath, config: dict, folder: Path, licence: str | None, step: int | None) -> None:
    """Writes a run directory with weights for inference alone, which `load` opens, and its card."""
    run_directory.check_artifacts(directory)
    params, extra, name = run_directory.load_weights(directory, step)
    artifacts = json.loads((directory / "artifacts.json").read_text("utf-8"))
    for file in (*_RECORDS, *artifacts, model_card.FILE):
        if (directory / file).is_file():
            (folder / file).write_bytes((directory / file).read_bytes())
    trained_weights.write_weights(folder / "checkpoints", run_directory.parse_name(name)[1], params, extra)
    if not (folder / model_card.FILE).is_file():
        kind = getattr(task_lib.module(ConfigDict(config)), "CARD", Kind(f"A model of the task `{config['task']}`"))
        model_card.write(folder, model_card.make(kind, name, licence=licence))


def _link_files(directory: Path, folder: Path) -> None:
    """Links all files below a directory into a folder, as weights may be large."""
    for file in paths.walk(directory):
        target = folder / file.relative_to(directory)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(file)
