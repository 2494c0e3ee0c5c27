"""Settings that mean nothing: each gets one sentence, whatever kind of nonsense it is."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from aml.errors import UserError
from aml.models.options import MODELS
from orchestrator.config.explain import every_leaf
from orchestrator.config.loader import from_dict, from_text, load
from orchestrator.config.validation import check_sweep

ROOT = Path(__file__).parents[3]
MINIMAL = "name: x\ndata: {train: shards}\n"
TPE = ["search.method=tpe", "search.trials=2"]


def refused(made, *arguments) -> str:
    """Return the one sentence that something is refused with."""
    with pytest.raises(UserError) as caught:
        made(*arguments)
    said = str(caught.value)
    assert said and "\n" not in said and len(said) < 1500 and said.isprintable()
    return said


def each(keys: str, *values: str) -> list[str]:
    """Return "a.{b,c}" with each value: a.b=1, a.b=2, a.c=1 ..."""
    head, _, rest = keys.partition("{")
    names = rest.rstrip("}").split(",") if rest else [""]
    return [f"{head}{name}={value}" for name in names for value in values]


@pytest.mark.parametrize(
    "override",
    [
        *each("model.{width,stem,blocks,layers,heads,max_words,dropout}", "abc", "null", "[1]"),
        *each("model.{heads,width}", "0", "-1", ".inf", "1.5", "true"),
        *("model=5", "model.name=[1]", "model.name=null", "model={5: 1}", "model.max_words=.inf"),
        *each(
            "aml.{width,block,warmup_epochs,ramp_epochs,last_epoch,stage1_scale}",
            "abc",
            "''",
            "[1]",
            "1.5",
        ),
        *("aml.block=.nan", "aml.rate=[1,2]", "aml=[1]", "aml=x", "aml.scale=true"),
        *each("aml.{protect_target,balance_target,normalise}", "nein", "no", "1", "null", "'true'"),
        *each("resources.{cpus_per_worker,memory_gb}", ".nan", ".inf", "-1", "x"),
        *each("resources.{grace_s,save_every_s,epoch_timeout_s}", ".nan", ".inf", "-1", "abc"),
        *each("resources.{price_per_gpu_hour,price_per_cpu_hour}", ".nan", ".inf", "-1"),
        *each("search.budget.{hours,cost,trial_hours}", ".nan", ".inf", "0", "-5", "abc"),
        *each("search.max_concurrent", "0", "-1", "1e9", "x"),
        *each("optim.{lr,weight_decay,encoder_lr,clip,power,gamma}", ".inf", ".nan", "-1", "x"),
        *each("optim", *(f"{{schedule: steps, milestones: {m}}}" for m in ("[2,2]", "[3,2]"))),
        *each("model", "{name: clipseg, extract: [3,3]}", "{name: 'x:Y', '': 1}", "{cls: 1}"),
        *each("model", "{name: 'x:Y', vocabulary: 1}", "{name: 'x:Y', \"a\\nb\": 1}"),
        *each("seed", "010", "0x10", "1:30", "0o7"),
        *each("optim.warmup", "\u0663epochs", "100001epochs"),
        *each("search.space", "{aml.tau: [0.5, 0.5]}", "{aml.tau: [1, 1.0]}"),
        "search.space={aml: [{tau: 0.5, rho: 1}, {rho: 1, tau: 0.5}]}",
        *each("tracking.uri", "databricks", "uc"),
        *each("optim.milestones", "[1,a]", "[-5,0]", "[1.5]", "5", "[null]"),
        *each("{seed,train.epochs,search.trials}", f"{10**11}", "-1", "1.5", "1e3", "x", "true"),
        *each("seed", f"{2**32}", "null", "[1]", "9" * 5000),
        *each("data.synth.{images,size,seed}", "-1", "1.5", "abc"),
        *("data.synth.images=0", "data.synth.size=0", "data.synth.dataset=abc", "data.synth=5"),
        *each("data.augment", "[flip,flip]", "flip", "[flop]", "[null]", "{flip: 1}"),
        *each("data.train", "[]", "[a,a]", "''", "5", "[a,5]", '"a\\n"', '"\\0"'),
        *each("search.arms", "[1,2]", "[]", "off", "[off,off]", "[null]", "{off: 1}"),
        *each("search.metric", "nope", "val/miou", "5", "null", "''"),
        *each("search.space", "{5: [1]}", "{aml.nope: [1]}", "{data.train: [x]}", "{aml.tau: []}"),
        *each("search.space", "{aml.tau: [x]}", "{aml.tau: [0.1, 2]}", "{aml.mode: [off]}", "5"),
        *each("search.space", "{aml: [{nope: 1}]}", "{aml: [{tau: x}]}", "{aml: [{}]}", "[1]"),
        *each("search.space", "{model.name: [small]}", "{seed: [1]}", "{model.width: [x]}"),
        *each("search.space", "{optim.warmup_epochs: [1]}", "{optim.lr: [.nan]}"),
        *each("name", '"a\\n"', "a/b", "''", "5", "null", "[a]", "a" * 62, '"a\\x85"', "é"),
        *each("tracking.uri", "ftp://x", "http://", "https:///x", "http://h:99999999", "sqlite://"),
        *each("tracking.uri", "http://[", "http://h:", "http://a b", "http://h:0"),
        *each("tracking.uri", "postgresql://", "gs://b", "5", "''", "http+x://h", '"a\\0"'),
        *each("storage.root", "abfs://c@a.dfs.core.windows.net/x", "http://x", "s3://"),
        *each("storage.root", "file:///x", "5", "''"),
        *each("search.scheduler", "ash", "[asha]", "{grace: 2}", "{name: none, grace: 2}", "5"),
        *each("search.scheduler", "{name: asha, interval: 2}", "{name: [1]}", "null"),
        *each("search.method", "grd", "{nam: grid}", "{name: grid, x: 1}", "5"),
        *each("optim.warmup", "5", "5apples", "-1epochs", "1.5steps", ".inf", "[1]", "true"),
        *("train.epochs=.nan", "train.epochs=.inf", "train.epochs=2.5", "train.batch=33.5"),
        *("=1", ".=1", "..=1", "a.b.c.d.e.f.g=1", "name.x=1", "search.space.=[1]"),
        *("x\n=1", "\ud800=1"),
        *("seed={x: 1}", "seed=!!int 'a'", "seed=!!timestamp x", "seed=!!python/name:os.system x"),
        *("seed=!!float x", "seed=!!bool x", "seed=!!binary x", "seed=!!int ''", "seed=!!set {a}"),
        *("seed={[1]: 2}", "seed={a: 1, a: 2}", "seed=" + "[" * 500, "seed=" + "[" * 40 + "]" * 40),
        *("seed='\\ud800'", 'name="\\ud800"', "seed=*a", "seed=&a [*a]", "seed=2026-01-01"),
        "seed=[" + "&a0 [0,0,0,0,0,0,0,0,0,0]" + "".join(
            f", &a{i} [{','.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)
        ) + "]",
    ],
    ids=lambda text: ascii(text)[:60],
)  # fmt: skip
def test_overrides_that_mean_nothing_get_one_sentence(override):
    begun = time.monotonic()
    refused(from_text, MINIMAL, [override])
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    "space",
    [
        *("{aml.tau: {low: 1, high: b}}", "{aml.tau: {low: null, high: 1}}", "{aml.tau: 5}"),
        *(
            "{aml.tau: {low: 0.5, high: 0.1}}",
            "{aml.tau: {low: 0, high: 2}}",
            "{aml.tau: {low: 0}}",
        ),
        *("{aml.tau: {low: 0, high: 1, log: true}}", "{aml.tau: {low: .nan, high: 1}}"),
        *("{aml.tau: {low: 0.1, high: 1, log: x}}", "{aml.level: {low: 0, high: 1}}"),
        *("{aml.block: {low: 4, high: 8}}", "{aml.normalise: {low: 0, high: 1}}"),
        *("{aml.tau: {low: false, high: true}}", "{aml: [{tau: 0.5}]}", "{optim.clip: {low: [1]}}"),
    ],
)
def test_ranges_that_mean_nothing_get_one_sentence(space):
    refused(from_text, MINIMAL, [*TPE, f"search.space={space}"])


def test_what_means_something_is_kept():
    good = [
        *("tracking.uri=none", "tracking.uri=mlruns", "tracking.uri=sqlite:///x.db"),
        *("tracking.uri=http://me@h:5000/x", "tracking.uri=postgresql+psycopg2://u@h/d"),
        *("tracking.uri=http://[::1]:5000", "tracking.uri=https://me:a/b@h.x/y"),
        *("tracking.uri=file:///x", "tracking.uri=null", "storage.root=s3://b/x"),
        *("model.dropout=0", "resources.cpus_per_worker=2", "search.metric=train/loss"),
        *("optim.warmup=500 steps", "optim.warmup=0", "optim.warmup=1epoch", "aml.rate=match"),
        *("search.space={aml: [{source: joint, score: cosine}]}", "search.space.aml.tau=[0.1]"),
        *("search.space={optim.warmup: [0, 0.5epochs], data.augment: [[], [flip]]}", "model=null"),
        *(
            "search.space={model.width: [64, 128]}",
            "search.scheduler=pbt",
            "search.method={name: grid}",
        ),
        *("model={name: my.own:Model, size: 5, names: [a, b]}", "model.name=folder/own.py:Model"),
    ]
    for override in good:
        from_text(MINIMAL, [override])
    ranges = "{aml.tau: {low: 0.1, high: 1, log: true}, optim.lr: {low: 1e-4, high: 1}}"
    from_text(MINIMAL, [*TPE, f"search.space={ranges}"])


WRONG: list[Any] = ["text", "", None, [], [1], {}, {"a": 1}, math.nan, math.inf, -math.inf, -1, 0]
WRONG += [
    10**400,
    -(10**400),
    10**5000,
    2**63,
    1e308,
    0.5,
    True,
    False,
    "a\nb",
    "\0",
    "\ud800",
    [None],
]
WRONG += [[[1]], {5: 1}, {"name": [1]}, object(), b"x", {1}, (1, 2), 1j, "x" * 10**5]


@pytest.mark.parametrize("leaf", every_leaf(), ids=lambda leaf: f"{leaf.key}-{leaf.within}")
def test_any_leaf_takes_a_valid_value_or_refuses_in_one_sentence(leaf):
    section, _, key = leaf.key.rpartition(".")
    for value in WRONG:
        tree: dict[str, Any] = {"name": "x", "data": {"train": "shards"}}
        inner = tree
        for part in section.split(".") if section else []:
            inner = inner.setdefault(part, {})
        if leaf.within and key != "name":
            inner["name"] = leaf.within
        inner[key] = value
        try:
            made = from_dict(tree)
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 1500
        else:
            assert from_text(made.to_yaml()) == made
            json.dumps(made.to_dict(), allow_nan=False)


@pytest.mark.parametrize("value", WRONG, ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("section", ["data", "model", "aml", "optim", "search", "storage", "seed"])
def test_any_section_takes_a_valid_value_or_refuses_in_one_sentence(section, value):
    tree = {"name": "x", "data": {"train": "shards"}, section: value}
    try:
        from_dict(tree)
    except UserError as error:
        assert "\n" not in str(error)


def test_every_leaf_says_what_it_means_admits_and_counts():
    for leaf in every_leaf():
        meaning = leaf.info.description
        assert meaning and meaning.endswith(".") and "\n" not in meaning, leaf.key
        assert leaf.wanted, leaf.key
        number = "a number" in leaf.wanted or "a whole number" in leaf.wanted
        assert leaf.unit or not number or leaf.key == "optim.warmup", leaf.key


@pytest.mark.parametrize("name", MODELS)
def test_a_sweep_checks_its_corners_for_every_model(name):
    size = MODELS[name].image_multiple * 4
    check_sweep(from_text(MINIMAL, [f"model={{name: {name}}}", f"data.size={size}", "aml.block=4"]))
    said = refused(
        check_sweep, from_text(MINIMAL, [f"model={{name: {name}}}", f"data.size={size + 1}"])
    )
    assert "needs a multiple" in said


# ---- files ---------------------------------------------------------------------------------------

BOMB = "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 15)
)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"- a\n", b"name: x\n", b"name: [\n", b"x", b"5", b"null", b"name: x\nname: y\n"),
        MINIMAL.encode("utf-16"),
        "name: é\ndata: {train: x}\n".encode("latin-1"),
        *(b"name: x\ndata: {train: a, train: b}\n", b"name: !!int 'a'\n", b"name: !!timestamp x\n"),
        *(b"[" * 100_000, b"a: " * 50_000, b"{a: " * 10_000, b"- " * 50_000),
        b"seed: " + b"9" * 5000,
        *(BOMB.encode(), b"name: &a {<<: *a}\n", b"<<: 5\n", b"? [a]\n: b\n", b"? {a: 1}\n: b\n"),
        *(b"5: x\n", b"null: x\n", b"true: x\n", b"name: \0\n", b"%YAML 9.9\n---\nname: x\n"),
        *(b"--- {}\n--- {}\n", b"x" * (2**20 + 1), b"base: [1]\n", b"base: 5\n", b"base: ''\n"),
        *(b"base: .\n", b"base: /dev/zero\n", b"base: nowhere.yaml\n", b"base: x.yaml\n"),
        b'base: "\\0"\n',
    ],
    ids=lambda content: ascii(content[:30]),
)  # fmt: skip
def test_files_that_are_no_experiment_get_one_sentence(content, tmp_path):
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    begun = time.monotonic()
    refused(load, path)
    assert time.monotonic() - begun < 5


def test_what_is_no_regular_file_is_not_read(tmp_path):
    fifo = tmp_path / "fifo.yaml"
    os.mkfifo(fifo)
    (tmp_path / "link.yaml").symlink_to("/dev/zero")
    for path in (
        fifo,
        tmp_path,
        tmp_path / "link.yaml",
        "/dev/zero",
        "",
        "a\0b",
        "x" * 5000,
        "\ud800",
    ):
        refused(load, path)
    for path in (fifo, "/dev/zero", ""):
        refused(load, ROOT / "experiments" / "study.yaml", [f"base={path}"])


def test_what_a_path_is_instead_of_a_file_is_said(tmp_path):
    assert "is a folder" in refused(load, tmp_path)
    assert "is a device" in refused(load, "/dev/zero")


def test_text_that_looks_like_something_else_reads_back(tmp_path):
    for name in ("1e5", "010", "off", "1.0", "2026-01-01", "null", "0x1f", "1_0"):
        made = from_text(MINIMAL, [f"name='{name}'", f"data.train=['{name}', 'a\u00e9']"])
        assert made.name == name and from_text(made.to_yaml()) == made


def test_a_byte_order_mark_and_line_ends_of_windows_are_read(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + MINIMAL.replace("\n", "\r\n").encode())
    assert load(path).name == "x"


def test_a_long_chain_of_bases_is_refused(tmp_path):
    for i in range(40):
        (tmp_path / f"{i}.yaml").write_text(f"base: {i + 1}.yaml\n" if i < 39 else MINIMAL)
    assert "name fewer files" in refused(load, tmp_path / "0.yaml")


# ---- in a process of its own ---------------------------------------------------------------------

HEAVY = ("torch", "ray", "mlflow", "transformers", "timm", "numpy", "pyarrow")

SHOWS = """
import sys
from orchestrator.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    code = end.code
heavy = [name for name in {heavy} if name in sys.modules]
sys.exit(f"imports {{heavy}}" if heavy else code)
"""

LOADS = """
import sys
from aml.errors import UserError
from orchestrator.config import load
try:
    load(sys.argv[1], sys.argv[2:])
    code = 0
except UserError as error:
    print(error, file=sys.stderr)
    code = 2
heavy = [name for name in {heavy} if name in sys.modules]
sys.exit(f"imports {{heavy}}" if heavy else code)
"""


@pytest.mark.parametrize("script", [SHOWS, LOADS], ids=["config show", "load"])
@pytest.mark.parametrize(("more", "code"), [([], 0), (["optim.larning=1"], 2), (["seed=.nan"], 2)])
def test_loading_and_refusing_imports_nothing_heavy(script, more, code):
    command = ["config", "show"] if script is SHOWS else []
    found = subprocess.run(
        [
            sys.executable,
            "-c",
            script.format(heavy=HEAVY),
            *command,
            "experiments/study.yaml",
            *more,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert found.returncode == code, found.stderr
    assert len(found.stderr.splitlines()) == (1 if code else 0)
