"""Checks the built pages: everything that they name is there, and nothing that they load comes from elsewhere.

    python -m tests.check_site build/site
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Elements of these classes make the theme's script fetch a library from elsewhere.
FETCHING = {"mermaid", "glightbox", "pyodide"}
_STYLE = re.compile(r"""(?:url\(|@import\s+)\s*["']?(?!data:|["')])([^"')\s]+)""")


class Page(HTMLParser):
    """Addresses of a page: what it loads, and where it links to."""

    def __init__(self, text: str):
        super().__init__()
        self.loaded, self.linked, self.classes = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.classes.update((values.get("class") or "").split())
        self.loaded += [value for name in ("src", "data", "poster") if (value := values.get(name))]
        self.loaded += [part.split()[0] for part in (values.get("srcset") or "").split(",") if part.strip()]
        self.loaded += _STYLE.findall(values.get("style") or "")
        if href := values.get("href"):
            loads = tag in ("link", "image", "use") and values.get("rel") not in ("canonical", "next", "prev")
            (self.loaded if loads else self.linked).append(href)


def find_problems(site: Path) -> list[str]:
    """Lists what the files of a site load from elsewhere, and what they name that is not there."""
    problems = []
    for file in sorted(site.glob("**/*")):
        if file.suffix == ".html":
            page = Page(file.read_text("utf-8"))
            loaded, linked = page.loaded, page.linked
            problems += [f"{file.relative_to(site)}: class {name} makes a script fetch" for name in page.classes & FETCHING]
        elif file.suffix in (".css", ".svg"):
            loaded, linked = _STYLE.findall(file.read_text("utf-8")), []
        else:
            continue
        for address in (*loaded, *linked):
            parts = urlsplit(address)
            target = site if parts.path.startswith("/") else file.parent  # 404.html is served from anywhere
            target = target / unquote(parts.path).lstrip("/")
            if parts.scheme in ("data", "mailto") or address.startswith("#"):
                continue
            if parts.scheme or parts.netloc:
                problems += [f"{file.relative_to(site)}: loads {address}"] * (address in loaded)
            elif not (target / "index.html" if target.is_dir() else target).exists():
                problems.append(f"{file.relative_to(site)}: there is no {address}")
    return problems


if __name__ == "__main__":
    root = Path(sys.argv[1])
    found = find_problems(root)
    print("\n".join(found) or f"{root}: {len(list(root.glob('**/*.html')))} pages, nothing missing, nothing from elsewhere")
    sys.exit(bool(found))
