"""The artists' drawings: reading them from tarballs as SVG, and rendering them to PNGs with transparency."""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from train_jax import paths
from train_jax.data.errors import DataError
from train_jax.datasets.emoji import tarballs

_PRESENTATION = "fe0f"  # asks for a colour picture; artists write it or not
_DEFAULT_SIDE = 16  # of an icon in Iconify's format
_REFERENCE = re.compile(r'(\bid="|url\(#|href="#)([^")]+)')  # names of gradients and clips, and where they are used
_SAME_NAMES = {"fluent-emoji": "fluent-emoji-flat"}  # artist without characters -> artist with the same names of icons


@dataclasses.dataclass(frozen=True)
class Drawing:
    """Drawing of an emoji by an artist.

    Attributes:
      code: code points in hexadecimal, joined by "-", without the presentation selector, such as "1f469-200d-1f692".
      group: Unicode's group, such as "Food & Drink".
    """

    artist: str
    code: str
    group: str
    svg: str

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the drawing, equal for the same drawing under another name (and so with other names of gradients)."""
        numbers: dict[str, int] = {}
        same = _REFERENCE.sub(lambda match: f"{match[1]}{numbers.setdefault(match[2], len(numbers))}", self.svg)
        return hashlib.sha256(same.encode()).hexdigest()


def read(artist: str, folder: Path) -> list[Drawing]:
    """Reads the drawings of an artist, in the order of their codes. Raises DataError for a damaged tarball."""
    with tarballs.opened(tarballs.ARTISTS[artist], folder) as tar:
        icons = tarballs.read_json(tar, "icons.json")
    # Microsoft's shaded drawings come without characters.
    with tarballs.opened(tarballs.ARTISTS[_SAME_NAMES.get(artist, artist)], folder) as tar:
        characters = tarballs.read_json(tar, "chars.json")
        categories = tarballs.read_json(tar, "metadata.json")["categories"]
    groups = {name: group for group, names in categories.items() for name in names}
    drawings = {}
    for characters_of_icon, name in sorted(characters.items()):
        icon = icons["icons"].get(name)
        code = normalize_code(characters_of_icon)
        if icon is not None and code not in drawings:
            drawings[code] = Drawing(artist, code, _name_group(groups.get(name, "")), _wrap(icon, icons))
    if not drawings:
        raise DataError(f"{tarballs.ARTISTS[artist].file} has no drawings")
    return [drawings[code] for code in sorted(drawings)]


def normalize_code(code: str) -> str:
    """Removes the presentation selectors from a code."""
    return "-".join(part for part in code.split("-") if part != _PRESENTATION)


def _name_group(group: str) -> str:
    """Returns Unicode's name of a group; OpenMoji leaves out the ampersand."""
    return re.sub(r"^(Animals|Food|People|Smileys|Travel) (?=\w)", r"\1 & ", group)


def _wrap(icon: dict, icons: dict) -> str:
    """Makes a square SVG file of an icon in Iconify's format, with the icon in the middle."""
    width, height = (icon.get(key, icons.get(key, _DEFAULT_SIDE)) for key in ("width", "height"))
    side = max(width, height)
    left, top = icon.get("left", 0) - (side - width) / 2, icon.get("top", 0) - (side - height) / 2
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left:g} {top:g} {side:g} {side:g}">{icon["body"]}</svg>'
    )


def render(drawings: Sequence[Drawing], size: int, *, progress: bool = True) -> Iterator[bytes]:
    """Yields a PNG of size x size pixels in RGBA for each drawing, in their order.

    PNGs are kept in the cache folder, so that an interrupted rendering continues, and another variant of the data set is
    made in seconds. Raises DataError if the renderer is not installed, or rejects a drawing.
    """
    try:
        import resvg_py  # an extra
    except ImportError as error:
        raise DataError("rendering emoji needs resvg-py: pip install 'multimodal-jax[emoji]'") from error
    folders = {}
    for drawing in tqdm(drawings, "rendering", unit=" drawings", disable=None if progress else True, smoothing=0.05):
        if drawing.artist not in folders:
            checksum = tarballs.ARTISTS[drawing.artist].sha256[:12]
            name = f"{drawing.artist}-{checksum}-resvg{resvg_py.__version__}"
            folders[drawing.artist] = paths.cache() / "emoji" / str(size) / name
            folders[drawing.artist].mkdir(parents=True, exist_ok=True)
        file = folders[drawing.artist] / f"{drawing.code}.png"
        if not file.exists():
            try:
                # Fonts of this machine must not change pictures; the drawings have no text.
                png = resvg_py.svg_to_bytes(svg_string=drawing.svg, width=size, height=size, skip_system_fonts=True)
            except ValueError as error:
                raise DataError(f"{drawing.artist} {drawing.code} cannot be rendered: {error}") from error
            paths.write_atomically(file, lambda stream: stream.write(png))  # noqa: B023
        yield file.read_bytes()
