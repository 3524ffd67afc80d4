"""Self-contained HTML pages with embedded images.

The `index.html` of the demos consists of one part per model, so that each part can be updated independently.
"""

import base64
import html
import io
from pathlib import Path

from PIL import Image

from train_jax import paths

_STYLE = """
:root { color-scheme: light dark; --card: #f1f2f4; --grey: #6b7280; --good: #15803d; --bad: #b91c1c }
@media (prefers-color-scheme: dark) { :root { --card: #26282c; --grey: #9ca3af; --good: #4ade80; --bad: #f87171 } }
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin: 2rem 0 .6rem }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)); gap: .9rem }
figure { margin: 0; padding: .6rem; border-radius: .5rem; background: var(--card); border: 2px solid transparent }
figure.right { border-color: var(--good) } figure.wrong { border-color: var(--bad) }
img, .gone { width: 100%; aspect-ratio: 1; object-fit: contain; display: grid; place-items: center; color: var(--grey) }
figcaption { overflow-wrap: anywhere; font-size: .85rem; margin-top: .4rem }
figcaption span { color: var(--grey); display: block }
.right figcaption span::after { content: " \\2713"; color: var(--good) }
.wrong figcaption span::after { content: " \\2717"; color: var(--bad) }
pre { background: var(--card); padding: 1rem; border-radius: .5rem; overflow-x: auto }
""".strip()


def document(title: str, body: str, style: str = "") -> str:
    """Makes a complete HTML page from a title, a body and additional CSS."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(printable(title))}</title>\n<style>\n{_STYLE}\n{style}\n</style>\n</head>\n<body>\n"
        f"{body}\n</body>\n</html>\n"
    )


def heading(text: str, level: int) -> str:
    """Formats a heading."""
    return f"<h{level}>{html.escape(printable(text))}</h{level}>"


def block(text: str) -> str:
    """Formats preformatted text in a fixed-width font."""
    return f"<pre>{html.escape(printable(text))}</pre>"


def note(text: str) -> str:
    """Formats a small remark, such as the authors of images; an empty one is nothing."""
    return f"<p><small>{html.escape(printable(text))}</small></p>" if text else ""


def image(file: Path) -> str:
    """Formats an embedded image of the width of the page."""
    with Image.open(file) as opened:
        source = data_uri(opened, "PNG")
    return f'<img src="{source}" alt="" style="aspect-ratio: auto">'


def add_part(workdir: Path, name: str, body: str) -> Path:
    """Saves a part of `workdir/index.html` and rewrites the page from all parts, sorted by name."""
    parts = workdir / "page"
    parts.mkdir(parents=True, exist_ok=True)
    (parts / f"{name}.html").write_text(body, "utf-8")
    bodies = [part.read_text("utf-8") for part in sorted(parts.glob("*.html"))]
    page = workdir / "index.html"
    text = document("Multimodal JAX: the demo", "\n".join(bodies))
    paths.write_atomically(page, lambda file: file.write(text.encode()))
    return page


def data_uri(image: Image.Image, kind: str) -> str:
    """Encodes an image as a data URI.

    Args:
      kind: "PNG" or "JPEG".
    """
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 85} if kind == "JPEG" else {"optimize": True}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def printable(text: str) -> str:
    """Replaces lone surrogates, which Python creates for file names that are not UTF-8, by "?"."""
    return text.encode("utf-8", "replace").decode()
