"""TFDS builders by the name of a source: embedded sets (`shapes/64`), and TFDS's own (`tfds:NAME`)."""

import functools
import importlib
import os

from train_jax import paths
from train_jax.data import mixture
from train_jax.data.errors import DataError
from train_jax.data.preparation import prepare_builder

EMBEDDED = ("shapes", "digits", "emoji")  # packages of `train_jax.datasets`


def prepare(name: str, data_dir: str | None = None, tarballs: str | None = None) -> list:
    """Writes the files of a source, or of the parts of a mixture, and returns their TFDS builders.

    Args:
      data_dir: directory of TFDS data sets; None: the default of TFDS.
      tarballs: folder of the npm tarballs of `emoji`; None: `npm pack` downloads what is missing.

    Raises DataError for a source whose files are not written by TFDS, or if they cannot be.
    """
    data_dir = data_dir and os.fspath(paths.path(data_dir))
    return [_prepare(mixture.split_conditions(part)[0], data_dir, tarballs) for _, part in mixture.parse(name)]


def _prepare(name: str, data_dir: str | None, tarballs: str | None):
    """Writes the files of one source and returns its builder."""
    kind, _, rest = name.partition(":")
    family = name.split("/")[0]
    if tarballs is not None and family != "emoji":
        raise DataError(f"{name} is not made of npm tarballs: --from is for emoji/SIZE only")
    if family == "emoji":
        return open_embedded(name, data_dir, prepare_from=tarballs or "")[1]
    if family in EMBEDDED:
        return open_embedded(name, data_dir)[1]
    if kind == "tfds" and rest:
        return open_tfds(rest, data_dir)
    raise DataError(f"there is nothing to prepare for {name!r}: name {', '.join(EMBEDDED)} or tfds:NAME")


def list_licences(name: str, split: str) -> list[str]:
    """Lists who made a split of a source, or of the parts of a mixture, and their licences, as far as they are known."""
    families = [mixture.split_conditions(part)[0].partition("/")[::2] for _, part in mixture.parse(name)]
    known = [(importlib.import_module(f"train_jax.datasets.{x}"), variant) for x, variant in families if x in EMBEDDED]
    return list(dict.fromkeys(line for module, variant in known for line in module.licences(variant, split)))


def open_embedded(name: str, data_dir: str | None, **options) -> tuple:
    """Returns module and TFDS builder of an embedded set, `shapes[/SIZE]`, `digits` or `emoji/SIZE[/OPTION=VALUE…]`.

    Files are written on first use; those of `emoji` only with the option `prepare_from` (see `train_jax.datasets.emoji`).
    """
    family, _, variant = name.partition("/")
    module = importlib.import_module(f"train_jax.datasets.{family}")
    try:
        return module, module.builder(*[variant] * bool(variant), data_dir=data_dir, **options)
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{name}: {error}") from error


def open_tfds(name: str, data_dir: str | None):
    """Returns the builder of a TFDS data set; writes its files on first use. Raises DataError if it has no images."""
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.registered.DatasetNotFoundError as error:
        # Only the first line: the message continues with a list of all data sets.
        raise DataError(f"tfds:{name}: TFDS knows no such data set ({str(error).strip().splitlines()[0]})") from error
    except ValueError as error:
        raise DataError(f"tfds:{name}: {error}") from error
    pictures, captions, labels = columns(builder)
    if not pictures or not (captions or labels):
        features = ", ".join(builder.info.features)
        raise DataError(f"tfds:{name}: needs an image and captions or a label; its features are {features}")
    if not builder.is_prepared():
        try:
            builder = prepare_builder(functools.partial(tfds.builder, name, data_dir=data_dir))
        except Exception as error:  # no network, no disk space, a missing package, …
            raise DataError(f"tfds:{name} cannot be prepared ({type(error).__name__}: {error})") from error
    return builder


def columns(builder) -> tuple[list[str], list[str], list[str]]:
    """Returns the names of the features of a TFDS data set that are images, captions and labels."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    pictures = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
    captions = [key for key in features if key in ("captions", "caption", "text")]
    labels = [key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
    return pictures, captions, labels
