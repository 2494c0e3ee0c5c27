"""A matrix of experiments: its cells, what goes on after a failure, and the table by hand."""

import csv
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from scipy import stats

from aml.errors import RunError, UserError
from orchestrator.cli.app import main
from orchestrator.config.loader import from_text, load
from orchestrator.config.matrix import load_matrix
from orchestrator.data import LastDecoded
from orchestrator.matrix import command as command_module
from orchestrator.reporting.comparison import matrix as table, splits as splits_module
from orchestrator.storage import Filesystem, run as run_module
from tests.support import latex
from tests.support.browser import Browser

ROOT = Path(__file__).parents[3]

TEXT = """
name: toy
data: {size: 32}
search: {arms: [off, random], trials: 0, space: {}}
matrix:
  data:
    refcoco: {data.train: data/a, splits: [val, testA]}
    refcoco+: {data: {train: data/b}, optim.lr: 2e-3}
  models:
    small: {model.width: 32, optim.lr: 1e-3}
    lavt: {base: lavt.yaml, protocol: original}
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "lavt.yaml").write_text("{model: {name: lavt}, data: {fit: letterbox, size: 48}}")
    (tmp_path / "toy.yaml").write_text(TEXT)
    return tmp_path / "toy.yaml"


def test_a_cell_has_the_settings_of_its_file_model_and_data_and_the_overrides(file):
    matrix = load_matrix(file, ["train.epochs=3"])
    found = {
        (c.data, c.model): (
            c.experiment.name,
            c.experiment.data.train,
            c.experiment.model["name"],
            c.experiment.data.fit,
            c.experiment.optim.lr,
            c.splits,
            c.protocol,
        )
        for c in matrix.cells
    }
    named = ["val", "testA"]
    lr = load(file.with_name("lavt.yaml"), ["name=x", "data.train=x"]).optim.lr
    assert list(found.items()) == [
        (
            ("refcoco", "small"),
            ("toy-refcoco-small", "data/a", "small", "square", 1e-3, named, "square"),
        ),
        (
            ("refcoco", "lavt"),
            ("toy-refcoco-lavt", "data/a", "lavt", "letterbox", lr, named, "original"),
        ),
        (
            ("refcoco+", "small"),
            ("toy-refcocoplus-small", "data/b", "small", "square", 2e-3, None, "square"),
        ),
        (
            ("refcoco+", "lavt"),
            ("toy-refcocoplus-lavt", "data/b", "lavt", "letterbox", 2e-3, None, "original"),
        ),
    ]
    assert {(c.experiment.train.epochs, c.experiment.data.size) for c in matrix.cells} == {(3, 32)}
    assert [c.experiment.optim.lr for c in load_matrix(file, ["optim.lr=5e-3"]).cells] == [5e-3] * 4
    assert load_matrix(ROOT / "experiments" / "quickstart.yaml") is None


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "matrix.data.refcoco.data.trains=x",
            "refcoco x small of the matrix: unknown key data.tra",
        ),
        ("matrix.models.lavt.protocol=round", "matrix.models.protocol is 'round'"),
        ("matrix.data=[]", "matrix.data is []; it must be a mapping of names"),
        ("matrix.sets={}", "unknown key matrix.sets; known here: data, models"),
        ("matrix=1", "matrix is 1; it must be a mapping"),
        ("matrix.data.refcocoplus={data.train: x}", "would be called toy-refcocoplus-small"),
    ],
)
def test_what_a_matrix_cannot_be_is_refused(file, override, said):
    with pytest.raises(UserError, match=re.escape(said)):
        load_matrix(file, [override])


def test_commands_for_one_run_refuse_a_matrix(file, capsys):
    for arguments, said in (
        (["train", str(file)], "which `sweep` runs"),
        (["sweep", str(file), "--fresh"], "--fresh are about one run"),
    ):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == 2 and said in capsys.readouterr().err


def cell(data: str, model: str = "caris", **more) -> table.CellScores:
    known = {"network": "caris", "arms": ["off", "random"], "protocol": "square", "size": 448}
    known |= {"select": "best_oIoU"}
    return table.CellScores(data=data, model=model, **(known | {"splits": ["val"]} | more))


def scored(values: dict[str, list[float]]) -> list[dict]:
    """Return the rows of arms whose seeds have these scores on val."""
    trials = [
        {"trial": f"{arm}-{seed}", "arm": arm, "seed": seed}
        for arm, scores in values.items()
        for seed in range(len(scores))
    ]
    names = ("mIoU", "oIoU", "P@0.5", "P@0.7", "P@0.9")
    scores = {
        t["trial"]: {"val": dict.fromkeys(names, values[t["arm"]][t["seed"]])} for t in trials
    }
    return splits_module.arm_rows(trials, scores, ["val"], list(values))


def test_the_table_marks_differences_and_stands_beside_published_results(tmp_path):
    surely = {"off": [0.700, 0.704, 0.702], "random": [0.750, 0.7545, 0.752]}
    weakly = {"off": [0.60, 0.61, 0.62], "random": [0.588, 0.592, 0.610]}
    perhaps = {"off": [0.60, 0.61, 0.62], "random": [0.61, 0.59, 0.62]}
    manifest = {
        "dataset": "refcoco",
        "split_by": "unc",
        "splits": {"val": {"sentences": 10834}},
    }
    cells = [
        cell("refcoco", rows=scored(surely), run="a-1", manifest=manifest),
        cell("mine", rows=scored(weakly), run="b-1"),
        cell("third", rows=scored(perhaps), run="c-1"),
        cell("gone", problem="no disk"),
        cell("50% & #1_a{b}~^", model=r"a\b", problem="line 1: x_1\nline 2: $5"),
    ]
    folder = Filesystem(tmp_path)
    lines = table.write_matrix(folder, "toy", cells)
    weak = stats.ttest_rel(weakly["random"], weakly["off"])
    assert 0.025 < weak.pvalue < 0.05, "alone, but not as the second of three tests"
    ends = [
        f"{100 * stats.sem(values['random']) * stats.t.ppf(0.975, 2):.2f}"
        for values in (surely, weakly, perhaps)
    ]
    assert (
        f"| caris | random | 3 | 75.22 ± {ends[0]} ↑* | 59.67 ± {ends[1]} ↓ | 60.67 ± {ends[2]} "
        "| – | – |"
    ) in lines
    assert "| caris | CARIS, 448 px (published) | – | 76.77 | – | – | – | – |" in lines
    assert any("mIoU in % at the epoch of the best validation oIoU, mean" in one for one in lines)
    assert not any("LAVT" in line for line in lines), "another model"
    assert "missing: gone x caris: no disk" in lines
    rows = list(csv.DictReader((tmp_path / "table.csv").open(newline="")))
    found = {(r["data"], r["arm"]): r for r in rows}
    assert float(found["mine", "random"]["mIoU_vs_off_p_holm"]) == pytest.approx(2 * weak.pvalue)
    assert found["gone", "off"]["problem"] == "no disk" and found["gone", "off"]["mIoU"] == ""
    assert found["refcoco", "random"]["seeds"] == "3"
    tex = (tmp_path / "table.tex").read_text()
    latex.check_latex(tex, tmp_path)
    assert r"$\uparrow$*" in tex and tex.count(r"\begin{table}") == 5 and "↑" not in tex
    page = (tmp_path / "table.html").read_text()
    assert page.count("<table>") == 5 and "gone x caris: no disk" in page
    browser = Browser(tmp_path / "profile")  # without Chromium the test ends here
    try:
        browser.open((tmp_path / "table.html").as_uri())
        arms = "[...document.querySelector('tbody').rows].filter((row) => !row.hidden)"
        arms += ".map((row) => row.cells[1].innerText)"
        before = browser.ask(arms)
        browser.ask("document.querySelectorAll('th button')[3].click()")  # of refcoco's val
        after = browser.ask(arms)
        browser.set(".filter input", "random")
        kept = browser.ask(arms)
        assert browser.problems == []
    finally:
        browser.close()
    assert before != after and after[2:5] == ["CARIS, 448 px (published)", "random", "off"]
    assert set(kept) == {"random"}


@pytest.mark.parametrize(
    ("sound", "broken", "said"),
    [
        (r"a & b \\", r"a \\", "1 cells in 2 columns"),
        (r"a & b \\", "a & b", "3 cells in 2 columns"),
        (r"50\%", "50%", "a row has no end"),
        (r"x\_1", "x_1", "_ is not escaped"),
        (r"$\tau$", r"\tau", "outside of mathematics"),
        (r"$\tau$", "τ", "character"),
        (r"$\tau$", r"$\tau", "mathematics"),
        (r"\caption{c}", r"\caption{c", "group"),
        (r"\begin{table}", "x \\begin{table}", "beside the tables stands x"),
        (r"\end{tabular}", "", "ends where it is not open"),
        (r"\centering", r"\centre", "unknown command"),
    ],
)
def test_the_check_of_latex_refuses_a_broken_table(sound, broken, said):
    lines = [r"a & b \\", r"50\% & x\_1 $\tau$ \\"]
    text = "\n".join(
        [
            *(r"\begin{table}", r"\centering", r"\caption{c}", r"\begin{tabular}{lr}"),
            *(r"\toprule", *lines, r"\end{tabular}", r"\end{table}", ""),
        ]
    )
    latex.check_source(text)
    assert sound in text
    with pytest.raises(AssertionError, match=re.escape(said)):
        latex.check_source(text.replace(sound, broken))


def test_a_failed_cell_is_named_and_an_interrupted_matrix_goes_on(
    file, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("AMLRIS_HOME", str(tmp_path / "runs"))
    started = []
    stop = {"toy-refcocoplus-small"}

    def run_sweep(experiment, decoded):
        started.append(experiment.name)
        if experiment.name in stop:
            return SimpleNamespace(code=130, run=None)
        if experiment.name == "toy-refcoco-lavt":
            raise RunError("the disk is full")
        run = run_module.Run(tmp_path / "runs" / f"{experiment.name}-1", "sweep")
        run.folder.mkdir(parents=True, exist_ok=True)
        return SimpleNamespace(code=0, run=run)

    monkeypatch.setattr(command_module.sweep, "run_sweep", run_sweep)
    monkeypatch.setattr(command_module, "with_splits", lambda cell, known: known)
    rows = scored({"off": [0.5, 0.6], "random": [0.5, 0.7]})
    monkeypatch.setattr(command_module.reporting, "evaluate_arms", lambda *_, **__: ([], rows))

    def command() -> tuple[int, str]:
        with pytest.raises(SystemExit) as left:
            main(["sweep", str(file), "matrix.data.refcoco.splits=[val]"])
        said = capsys.readouterr()
        return left.value.code, said.out + said.err

    code, text = command()
    assert code == 130 and "toy interrupted; the same command continues it" in text
    assert started == ["toy-refcoco-small", "toy-refcoco-lavt", "toy-refcocoplus-small"]
    assert "missing: refcoco x lavt: the disk is full" in text
    stop.clear()
    code, text = command()
    assert code == 1 and started[-1] == "toy-refcocoplus-lavt"
    assert "missing: refcoco x lavt: the disk is full" in text and text.count("missing: ") == 1
    assert "refcoco val" in (tmp_path / "runs/toy-matrix/table.md").read_text()


def test_cells_of_one_data_set_and_size_share_its_pictures():
    decoded = []

    def sources(uri: str, size: int = 32):
        def decode(windowed):
            decoded.append((uri, size, windowed))
            return object()

        data = from_text(f"{{name: x, data: {{train: {uri}, size: {size}}}}}").data
        known = {"uri": uri, "manifests": [{"fingerprint": uri}], "evaluation": frozenset()}
        return SimpleNamespace(data=data, decode=decode, **known)

    last = LastDecoded()
    first = last.decode(sources("a"))
    assert last.decode(sources("a")) is first and last.decode(sources("a"), windowed=False) is first
    last.decode(sources("a"), windowed=True)
    last.decode(sources("a", size=48))
    last.decode(sources("b", size=48))
    assert decoded == [
        *(("a", 32, None), ("a", 32, True)),
        *(("a", 48, None), ("b", 48, None)),
    ]


SMALL = [
    *("data.size=32", "data.val_limit=16", "tracking.uri=none"),
    "model={name: small, width: 16, stem: 8, heads: 2, dropout: 0.0}",
    *("train={epochs: 1, batch: 16}", "evaluate={probe: 8, pictures: 2, threshold: 0.04}"),
    *(
        f"matrix.data.{name}.data.synth={{dataset: {name}, images: 48, size: 48}}"
        for name in ("refcoco", "refcoco+", "refcocog")
    ),
]


def test_the_small_paper_is_cut_off_and_goes_on_to_one_table(tmp_path, monkeypatch, ray_session):
    """After two cells, the second of which is trained but not scored."""
    monkeypatch.setenv("AMLRIS_HOME", str(tmp_path))
    arguments = ["sweep", str(ROOT / "experiments" / "paper_small.yaml"), *SMALL]
    code, text = ray_session([*arguments, "--dry-run"])
    assert code == 0 and "in all 12 trainings" in text and "nothing was started" in text
    assert text.count("    time: a few steps measured just now") == 3
    score = splits_module.evaluation.evaluate_together
    asked = []

    def noted(request, out, **more):
        asked.append((Path(request.shards.path).name, request.split))
        return score(request, out, **more)

    def cut_off(request, out, **more):
        if request.split == "testA" and Path(request.shards.path).name == "refcoco+":
            asked.append(("refcoco+", "testA"))
            raise KeyboardInterrupt
        return noted(request, out, **more)

    with monkeypatch.context() as patched:
        patched.setattr(splits_module.evaluation, "evaluate_together", cut_off)
        code, text = ray_session(arguments)
        assert code == 130, text
        assert asked[-2:] == [("refcoco+", "val"), ("refcoco+", "testA")]
        folder = tmp_path / "paper_small-matrix"
        assert "refcocog x small: has not run yet" in (folder / "table.md").read_text()
        patched.setattr(splits_module.evaluation, "evaluate_together", noted)
        code, text = ray_session(arguments)
    assert code == 0, text
    assert text.count(" has finished ") == 2, "no cell is trained twice"
    assert asked[5:] == [
        *(("refcoco+", split) for split in ("testA", "testB")),
        *(("refcocog", split) for split in ("val", "test")),
    ], "and no split scored twice"
    rows = list(csv.DictReader((folder / "table.csv").open(newline="")))
    assert len(rows) == 16 and {r["seeds"] for r in rows} == {"2"}
    assert all(0 < float(r["mIoU"]) < 1 for r in rows)
    how = ["--arms", "--data", "data/paper_small/refcoco+", "--splits", "val,testA,testB"]
    code, text = ray_session(
        ["evaluate", "paper_small-refcocoplus-small", *how, "--out", str(tmp_path / "alone")]
    )
    assert code == 0, text
    alone = json.loads((tmp_path / "alone" / "scores.json").read_text())
    (kept,) = tmp_path.glob("paper_small-refcocoplus-small-*/splits/scores.json")
    assert json.loads(kept.read_text())["scores"] == alone["scores"]
