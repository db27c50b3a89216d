"""What a built page holds, and what it asks a browser to load: enough to check a site without a browser."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
}
LINKS_THAT_LOAD = {"stylesheet", "icon", "shortcut", "preload", "modulepreload", "prefetch", "manifest"}
IN_CSS = re.compile(r"""(?:@import\s+(?:url\(\s*)?|url\(\s*)["']?([^"')\s;]+)""")


class Page(HTMLParser):
    def __init__(self, path: Path):
        super().__init__(convert_charrefs=True)
        self.path, self.ids, self.links, self.loads = path, [], [], []
        self.headings, self.images, self.title, self.details, self.open = [], [], "", 0, []
        self.depth = 0
        self.feed(path.read_text("utf-8"))
        self.close()

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if found.get("id"):
            self.ids.append(found["id"])
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        if tag in LOADED and found.get(LOADED[tag]):
            self.loads.append(found[LOADED[tag]])
        if tag == "link" and LINKS_THAT_LOAD & set(found.get("rel", "").split()):
            self.loads.append(found["href"])
        self.loads += [part.split()[0] for part in found.get("srcset", "").split(",") if part.strip()]
        self.loads += IN_CSS.findall(found.get("style") or "")
        if tag == "img":
            self.images.append(found)
        if tag == "details":
            self.details += 1
            self.depth += 1
        if tag in ("title", "h1", "style"):
            self.open.append((tag, []))

    def handle_endtag(self, tag):
        if tag == "details":
            self.depth -= 1
            assert self.depth >= 0, f"{self.path.name}: a fold is closed that was not opened"
        if self.open and self.open[-1][0] == tag:
            tag, texts = self.open.pop()
            text = "".join(texts).strip()
            if tag == "title" and not self.title:
                self.title = text
            elif tag == "h1":
                self.headings.append(text)
            elif tag == "style":
                self.loads += IN_CSS.findall(text)

    def handle_data(self, data):
        if self.open:
            self.open[-1][1].append(data)


def broken_links(pages: dict[Path, Page]) -> list[str]:
    """Links and anchors inside the site that lead nowhere, as `page: link`."""
    broken = []
    for path, page in pages.items():
        for link in page.links + page.loads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            anchor = unquote(parts.fragment)
            lost = not target.is_file() or (anchor and target in pages and anchor not in pages[target].ids)
            if lost:
                broken.append(f"{path.name}: {link}")
    return broken


def loaded_from_elsewhere(root: Path, pages: dict[Path, Page]) -> list[str]:
    """What a browser would fetch from the network by itself: from a page, or from a style sheet."""
    found = [f"{path.name}: {link}" for path, page in pages.items() for link in page.loads if remote(link)]
    for sheet in root.rglob("*.css"):
        found += [f"{sheet.name}: {link}" for link in IN_CSS.findall(sheet.read_text("utf-8")) if remote(link)]
    return found


def remote(link: str) -> bool:
    parts = urlsplit(link)
    return parts.scheme in ("http", "https", "ws", "wss") or bool(parts.netloc)
