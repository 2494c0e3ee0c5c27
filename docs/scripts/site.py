"""Put pages that lie outside docs/ on the site, and lead links between all of them.

mkdocs.yml names this file under `hooks`. In the repository a page of docs/ links to
../experiments/results/quickstart.md; on the site that page is experiments/results/quickstart.md.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
OUTSIDE = (
    *("CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "cluster/README.md"),
    *("experiments/results/*.md", "experiments/results/*.png"),
)
"""Files outside docs/ that are part of the site, at the places that they have in the repository."""

LINK = re.compile(r"\]\(([^)\s#]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside docs/."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Lead a page's links, which hold in the repository, to the same files on the site."""
    source = Path(str(page.file.abs_src_path)).relative_to(ROOT).as_posix()
    here = posixpath.dirname(page.file.src_uri) or "."

    def on_site(link: re.Match) -> str:
        if "://" in link[1] or link[1].startswith("mailto:"):
            return link[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1]))
        return "](" + posixpath.relpath(target.removeprefix("docs/"), here)

    return LINK.sub(on_site, markdown)
