"""Run the code cells of a notebook in one process, in order, and print what each one shows.

python tests/support/notebook.py NOTEBOOK: each cell's number, then the text of its last expression,
its HTML where it has some. A cell with the tag raises-exception has to raise; what IPython would
print is printed.
"""

import ast
import json
import sys
from pathlib import Path


def run_cell(source: str, names: dict) -> object:
    """Run a cell and return the value of its last line where that is an expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)  # noqa: S102 (the notebook's own code)
    if last is None:
        return None
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names)  # noqa: S307 (the same)


def main(path: str) -> None:
    """Run a notebook."""
    names: dict = {"__name__": "__main__"}
    for number, cell in enumerate(json.loads(Path(path).read_text("utf-8"))["cells"]):
        if cell["cell_type"] != "code":
            continue
        print(f"--- cell {number}", flush=True)
        source = "".join(cell["source"])
        if "raises-exception" in cell["metadata"].get("tags", ()):
            try:
                run_cell(source, names)
            except Exception as error:
                print("\n".join(error._render_traceback_()), flush=True)  # as IPython does
            else:
                raise SystemExit(f"cell {number} was to raise")
            continue
        value = run_cell(source, names)
        if value is not None:
            show = getattr(value, "_repr_html_", lambda value=value: repr(value))
            print(show(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
