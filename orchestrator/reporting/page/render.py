"""Render the page: the template with style, script, data and the library of figures inside.

The page loads nothing. Its content policy admits exactly two scripts, by their hashes: the page's
own, of the files in `SCRIPTS`, and plotly's bundle, which is stored compressed and unpacked by the
browser. So a script that a name or a sentence might carry never runs, even if it were not escaped.
"""

import base64
import gzip
import hashlib
import json
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from orchestrator.reporting import wording

SCRIPTS = ("tables.js", "arms.js", "figures.js", "comparisons.js", "report.js")
"""Files of the page's script, in order; each uses names of those before it."""


def render(page: dict[str, Any]) -> str:
    """Return the page as HTML.

    Args:
        page: Variables of the template; `data` is what the script draws.
    """
    formats = {
        "num": wording.num,
        "pct": wording.pct,
        "points": wording.points,
        "setting": wording.setting_text,
        "brief": wording.brief,
    }
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    script = _script(SCRIPTS)
    library, library_hash = _plotly()
    own = {
        "style": Markup(_file("report.css")),  # noqa: S704 (a file of this package)
        "script": Markup(script),  # noqa: S704 (files of this package)
        "hashes": [_hash(script.encode()), library_hash],
        "plotly": library,
        "data_json": script_json(page["data"]),
    }
    return environment.from_string(_file("report.html.j2")).render(page | formats | own)


def script_json(value: Any) -> Markup:
    """Return JSON that may stand in a script tag, whatever texts it holds.

    No `<`, `>` or `&` is left in it, so that no text ends the tag or begins a comment.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704 (nothing in it is a tag)


def tables_script() -> str:
    """Return the script by which the tables of a page sort and are filtered."""
    return _script(SCRIPTS[:1])


def _script(names: tuple[str, ...]) -> str:
    """Return files as one script, whose names no other script sees."""
    return '"use strict";\n(() => {\n' + "\n".join(map(_file, names)) + "})();\n"


def _file(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(script: bytes) -> str:
    """Return a script's hash as a content policy names it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}"


@cache
def _plotly() -> tuple[str, str]:
    """Return plotly's bundle, compressed and in base64, and its hash."""
    content = files("plotly").joinpath("package_data", "plotly.min.js").read_bytes()
    return base64.b64encode(gzip.compress(content, mtime=0)).decode(), _hash(content)
