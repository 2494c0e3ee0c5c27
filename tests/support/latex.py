"""Compile a LaTeX table where pdflatex is installed; else check all that a table can break."""

import re
import shutil
import subprocess
from pathlib import Path

COMMANDS = {
    *("begin", "end", "centering", "caption", "label", "toprule", "midrule", "bottomrule"),
    *("textbackslash", "textasciitilde", "textasciicircum"),
    *("tau", "rho", "Delta", "times", "pm", "uparrow", "downarrow"),
    *("_", "%", "&", "#", "$", "{", "}", "\\"),
}
MATHS = {"tau", "rho", "Delta", "times", "pm", "uparrow", "downarrow"}
PART = re.compile(r"\\(?:[A-Za-z]+|.)|[^\\]", re.DOTALL)


def check_latex(text: str, folder: Path) -> None:
    """Check tables of the booktabs style.

    Args:
        text: Source of `table` environments.
        folder: An empty folder to compile in.

    Raises:
        AssertionError: It does not compile, or breaks what is checked without pdflatex: commands,
            characters, groups, environments, mathematics, special characters, cells of rows.
    """
    check_source(text)
    if shutil.which("pdflatex"):
        document = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n"
        (folder / "t.tex").write_text(f"{document}{text}\\end{{document}}\n", "utf-8")
        command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "t.tex"]
        done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]


def check_source(text: str) -> None:
    """Check the source as far as that goes without LaTeX; see check_latex."""
    text = re.sub(r"(?<!\\)((?:\\\\)*)%[^\n]*\n?", r"\1", text)
    text = re.sub(r"\\label\{[^{}\\$&#%~^]*\}", "", text)
    assert all(ord(c) < 0x100 for c in text), "a character that pdflatex does not know"
    open_groups: list[str] = []
    maths = False
    for found in PART.finditer(text):
        part = found[0]
        if part[0] == "\\":
            name = part[1:]
            assert name in COMMANDS, f"unknown command {part}"
            assert (name in MATHS) <= maths, f"{part} outside of mathematics"
        elif part == "$":
            maths = not maths
        elif part == "{":
            open_groups.append(part)
        elif part == "}":
            assert open_groups, "a group is closed that was not opened"
            open_groups.pop()
        else:
            assert part not in "#^_", f"{part} is not escaped"
            assert not (maths and part == "\n"), "mathematics goes over a line"
    assert not open_groups, "a group is not closed"
    assert not maths, "mathematics is not closed"
    _check_environments(text)


def _check_environments(text: str) -> None:
    beside = re.sub(r"\\begin\{table\}.*?\\end\{table\}", "", text, flags=re.DOTALL)
    assert not beside.strip(), f"beside the tables stands {beside.strip()}"
    nested: list[str] = []
    for word, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if word == "begin":
            nested.append(name)
        else:
            assert nested and nested.pop() == name, f"{name} ends where it is not open"
    assert not nested, f"{nested} has no end"
    body = r"\\begin\{tabular\}\{([lcr]+)\}(.*?)\\end\{tabular\}"
    tables = re.findall(body, text, re.DOTALL)
    assert len(tables) == text.count(r"\begin{tabular}") > 0
    for columns, cells in tables:
        plain = re.sub(r"\\(?:top|mid|bottom)rule", "", cells)
        *rows, rest = plain.split(r"\\")
        assert not rest.strip(), "a row has no end"
        for row in rows:
            held = len(re.findall(r"(?<!\\)&", row)) + 1
            assert held == len(columns), f"{held} cells in {len(columns)} columns: {row}"
    outside = re.sub(body, "", text, flags=re.DOTALL)
    assert not re.search(r"(?<!\\)&", outside), "& outside of a table"
