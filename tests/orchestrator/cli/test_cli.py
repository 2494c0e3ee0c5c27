"""Wrong input: one sentence, exit code 2, no traceback. Right input: what the README shows."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.cli import app
from orchestrator.cli.app import main

ROOT = Path(__file__).parents[3]


def run(arguments, capsys) -> tuple[int, str]:
    with pytest.raises(SystemExit) as left:
        main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return left.value.code, captured.out + captured.err


def refused(arguments, capsys, *said) -> str:
    code, text = run(arguments, capsys)
    assert code == 2, text
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in text
    for word in said:
        assert word in errors[0], errors[0]
    return errors[0]


@pytest.fixture
def experiment(tmp_path):
    path = tmp_path / "e.yaml"
    path.write_text(
        f"name: e\ndata: {{train: {tmp_path}/none, size: 64}}\nstorage: {{root: {tmp_path}}}\n"
    )
    return path


@pytest.fixture
def refer(scenes, tmp_path):
    """A copy of the generated REFER folder that a test may spoil."""
    shutil.copytree(scenes, tmp_path / "refer")
    return tmp_path / "refer"


def shard(folder, *more):
    return [
        "shard",
        "--refer-root",
        folder,
        "--images",
        folder / "images",
        "--dataset",
        "refcoco",
        "--split-by",
        "unc",
        "--out",
        folder.parent / "out",
        *more,
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        *(["predict", "", "--image", "x", "--text", "x"], ["predict", "x", "--image="]),
        *(["evaluate", " ", "--data", "x", "--out", "x"], ["compare", "a", ""], ["report", ""]),
        *(["stop", ""], ["reproduce", ""], ["demo", ""], ["train", "x.yaml", "--resume", ""]),
        *(["config", "show", ""], ["data", "show", ""]),
    ],
    ids=" ".join,
)
def test_an_empty_argument_is_refused_before_anything_is_looked_up(arguments, capsys):
    assert "is empty" in refused(arguments, capsys)


def test_the_home_of_nobody_is_refused(experiment, capsys):
    refused(["predict", "~nobody-x", "--image", "x", "--text", "x"], capsys, "no user's home")
    refused(["train", experiment, "storage.root=~nobody-x/y"], capsys, "no user of that name")


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['x', '--help']\n"
        "try:\n"
        " import runpy; runpy.run_module('orchestrator', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'ray', 'mlflow', 'transformers', 'pandas', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)


def test_tasks_that_decode_wait_for_no_torch():
    """Each process of Ray Data imports the module of its task."""
    code = (
        "import sys, orchestrator.data.convert, orchestrator.data.decoded; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_published_caris_is_checked_without_torch():
    code = (
        "import sys\n"
        "from orchestrator.config import check_run, load\n"
        "check_run(load('experiments/caris_refcoco.yaml', []))\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_wrong_settings(command, experiment, capsys):
    refused([command, experiment, "optm.lr=1"], capsys, "unknown key optm", "did you mean optim")
    refused([command, experiment, "aml.tau=2"], capsys, "aml.tau is 2", "[0, 1]")
    refused([command, experiment, "model.name=big"], capsys, "model.name is 'big'", "small")
    refused([command, experiment, "data.size=100"], capsys, "multiple of 16")
    refused([command, "absent.yaml"], capsys, "absent.yaml cannot be read")
    refused([command, experiment], capsys, "_COMPLETE.json", "no complete shards")
    refused([command, experiment, "--resume", "nothing"], capsys, "no run under")
    refused(
        [
            command,
            experiment,
            "data.synth={images: 100}",
            "resources.workers=2",
            "resources.cpus_per_worker=500",
            "--dry-run",
        ],
        capsys,
        "500",
        "CPU",
    )


def test_a_mask_that_would_hide_nothing(experiment, capsys):
    refused(
        ["train", experiment, "aml.tau=0.01", "aml.rho=0.1"], capsys, "tau*rho*n", "less than one"
    )
    refused(
        ["sweep", experiment, "search.space={aml.tau: [0.01], aml.rho: [0.1]}"], capsys, "tau*rho*n"
    )


def test_missing_annotations_and_images(refer, capsys):
    (refer / "refcoco" / "instances.json").rename(refer / "moved.json")
    refused(shard(refer), capsys, "instances.json cannot be read (it is missing)")
    (refer / "moved.json").rename(refer / "refcoco" / "instances.json")
    picture = sorted((refer / "images" / "train2014").iterdir())[0]
    picture.unlink()
    refused(shard(refer), capsys, "1 of", picture.name)
    refused(shard(refer)[:-2], capsys, "needs --refer-root")
    refused(
        [
            "shard",
            "--refer-root",
            refer,
            "--images",
            refer,
            "--dataset",
            "refcocoo",
            "--out",
            refer.parent / "out",
        ],
        capsys,
        "refcocoo",
    )


def test_a_malicious_pickle_is_refused_and_not_run(refer, capsys, tmp_path):
    class Trap:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/sprung",)

    (refer / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps([Trap()]))
    refused(shard(refer), capsys, "system", "nothing of it was run")
    assert not (tmp_path / "sprung").exists()


def test_an_unreadable_jpeg_is_named_and_skipped_only_when_asked(refer, ray_session, tmp_path):
    pictures = sorted((refer / "images" / "train2014").iterdir())
    pictures[3].write_bytes(pictures[3].read_bytes()[:200])
    code, text = ray_session([str(a) for a in shard(refer)])
    assert (
        code == 2
        and "1 of 40 images cannot be used" in text
        and pictures[3].name in text
        and "--skip-unreadable" in text
    )
    assert not (tmp_path / "out" / "_COMPLETE.json").exists()
    code, text = ray_session([str(a) for a in shard(refer, "--skip-unreadable")])
    assert code == 0 and "left out" in text and pictures[3].name in text


def test_shards_hold_each_image_once_and_say_what_they_hold(scenes, rows, ray_session, tmp_path):
    import pyarrow.parquet as pq

    from aml.data.refer_counts import split_counts

    out = tmp_path / "out"
    arguments = [
        "shard",
        "--refer-root",
        scenes,
        "--images",
        scenes / "images",
        "--dataset",
        "refcoco",
        "--split-by",
        "unc",
        "--out",
        out,
        "--json",
    ]
    code, text = ray_session([str(a) for a in arguments])
    assert code == 0, text
    said = json.loads(text.splitlines()[-1])
    assert said["splits"] == split_counts(rows) and len(said["fingerprint"]) == 16
    ids = [
        i
        for f in out.glob("*.parquet")
        for i in pq.read_table(f, columns=["image_id"])["image_id"].to_pylist()
    ]
    assert sorted(ids) == [r["image_id"] for r in rows]
    again = json.loads(ray_session([str(a) for a in arguments])[1].splitlines()[-1])
    assert again == said
    code, text = ray_session(["shard", "--verify", str(out)])
    assert code == 0 and "is whole" in text
    damaged = sorted(out.glob("*.parquet"))[0]
    damaged.write_bytes(damaged.read_bytes()[:-50])
    code, text = ray_session(["shard", "--verify", str(out)])
    assert code == 2 and damaged.name in text and "damaged" in text
    damaged.unlink()
    code, text = ray_session(["shard", "--verify", str(out)])
    assert code == 2 and damaged.name in text
    (out / "_COMPLETE.json").unlink()
    code, text = ray_session(["shard", "--verify", str(out)])
    assert code == 2 and "_COMPLETE.json" in text


def test_the_real_mini_refcoco_goes_through(real_data, ray_session, tmp_path):
    import hashlib

    from aml.data.decode import rasterise
    from orchestrator.data import shards as shards_module
    from orchestrator.storage import filesystem

    folder = real_data / "mini_refer"
    out = tmp_path / "mini"
    code, text = ray_session(
        [
            "shard",
            "--refer-root",
            str(folder),
            "--images",
            str(folder / "images"),
            "--dataset",
            "refcoco",
            "--split-by",
            "unc",
            "--out",
            str(out),
            "--json",
        ]
    )
    assert code == 0, text
    splits = json.loads(text.splitlines()[-1])["splits"]
    assert {split: c["refs"] for split, c in splits.items()} == {"testA": 4, "testB": 6, "val": 6}
    assert sum(c["sentences"] for c in splits.values()) == 49
    (line,) = [line for line in text.splitlines() if "published" in line]
    assert (
        line.startswith("counts differ from the published refcoco (unc): train 0 refs, not 42404;")
        and "val 6 refs, not 3811" in line
    )
    expected = {e["ref_id"]: e for e in json.loads((folder / "expected.json").read_text())}
    seen = 0
    store = filesystem.Filesystem(out)
    for row in shards_module.read_rows(
        store, shards_module.picture_places(store, ["val", "testA", "testB"]), jpeg=False
    ):
        rles = {o["ann_id"]: o["rle"] for o in row["objects"]}
        for ref in row["refs"]:
            mask = rasterise(rles[ref["ann_id"]], row["height"], row["width"])
            assert int(mask.sum()) == expected[ref["ref_id"]]["mask_pixels"]
            assert (
                hashlib.sha256(mask.tobytes()).hexdigest() == expected[ref["ref_id"]]["mask_sha256"]
            )
            seen += 1
    assert seen == 16


def test_a_folder_with_other_files_is_left_alone(scenes, ray_session, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    code, text = ray_session(
        [
            str(a)
            for a in [
                "shard",
                "--refer-root",
                scenes,
                "--images",
                scenes / "images",
                "--out",
                tmp_path / "out",
            ]
        ]
    )
    assert code == 2 and "thesis.tex" in text and "a new or an empty folder" in text
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"


def test_generated_data_of_other_settings_are_not_used_in_silence(
    tmp_path, ray_session, experiment
):
    from orchestrator.config.schema import SynthConfig
    from orchestrator.data import convert as convert_module
    from orchestrator.storage import filesystem

    convert_module.make_synthetic(
        SynthConfig(images=16, size=48),
        filesystem.Filesystem(tmp_path / "none"),
        tmp_path,
    )
    code, text = ray_session(
        ["train", str(experiment), "data.synth={images: 32, size: 48}", "--dry-run"]
    )
    assert code == 2 and "was generated with" in text and "'images': 16" in text


def test_an_image_of_another_size_than_its_annotations_is_named(refer, ray_session):
    from PIL import Image

    picture = sorted((refer / "images" / "train2014").iterdir())[5]
    Image.new("RGB", (10, 12)).save(picture)
    code, text = ray_session([str(a) for a in shard(refer)])
    assert code == 2 and picture.name in text and "10 x 12" in text


def test_an_empty_split_is_named(scenes, ray_session, tmp_path, experiment):
    code, text = ray_session(
        [
            str(a)
            for a in [
                "shard",
                "--refer-root",
                scenes,
                "--images",
                scenes / "images",
                "--out",
                tmp_path / "none",
            ]
        ]
    )
    assert code == 0, text
    code, text = ray_session(["train", str(experiment), "data.val_split=nowhere"])
    assert code == 2 and "val_split 'nowhere' is empty" in text


def test_synth_prints_its_counts(tmp_path, capsys):
    code, text = run(["synth", tmp_path / "made", "--images", "16", "--size", "48"], capsys)
    assert code == 0 and "train" in text and "sentences" in text
    refused(["synth", tmp_path / "other", "--images", "2"], capsys, "images")
    refused(["synth", tmp_path / "other", "--cutouts", "a.json"], capsys, "--photographs", "both")
    composed = ["synth", tmp_path / "other", "--cutouts", "a.json", "--photographs", tmp_path]
    refused(composed, capsys, "a.json is no file")


def test_an_interrupted_command_says_so(tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("aml.synthetic.refer_files.generate_dataset", interrupted)
    code, text = run(["synth", tmp_path / "refer"], capsys)
    assert code == 130 and text == "interrupted; give the same command again\n"


def test_doctor_and_runs_answer(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("AMLRIS_HOME", str(tmp_path))
    code, text = run(["doctor"], capsys)
    assert code == 0 and "torch" in text and "storage" in text and "tracking" in text
    code, text = run(["runs"], capsys)
    assert code == 0 and "no runs" in text
    refused(["stop", "nothing"], capsys, "no run under")


def test_the_imports_point_one_way():
    """aml never imports the orchestrator, Ray or MLflow."""
    import ast

    for path in (ROOT / "aml").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            assert not {n.split(".")[0] for n in names} & {"orchestrator", "ray", "mlflow"}, path


HEAVY = ("torch", "ray", "mlflow", "numpy", "pyarrow", "transformers", "timm", "pandas")
WHICH = """
import sys
from orchestrator.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    code = end.code
print([name for name in {heavy} if name in sys.modules], code)
"""


@pytest.mark.parametrize(
    "arguments, code",
    [
        (["--help"], 0),
        (["sweep", "--help"], 0),
        (["runs"], 0),
        (["config", "explain", "aml.tau"], 0),
        (["config", "show", "experiments/quickstart.yaml"], 0),
        (["sweep", "experiments/quickstart.yaml", "optim.larning=1", "--dry-run"], 2),
        (["train", "experiments/quickstart.yaml", "model.width=abc"], 2),
        (["train", "nowhere.yaml"], 2),
        (["preview", "experiments/quickstart.yaml", "aml.tau=2"], 2),
        (["shard", "--out", "x"], 2),
        (["submit"], 2),
        (["nothing"], 2),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else None,
)
def test_what_needs_no_tensor_answers_without_heavy_imports(arguments, code, tmp_path):
    found = subprocess.run(
        [sys.executable, "-c", WHICH.format(heavy=HEAVY), *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"AMLRIS_HOME": str(tmp_path)},
        check=True,
    )
    assert found.stdout.splitlines()[-1] == f"[] {code}"


def test_quiet_stands_anywhere_and_is_handed_on_by_submit(monkeypatch, capsys):
    quietened = []
    monkeypatch.setattr("orchestrator.utils.quieten", lambda: quietened.append(True))
    assert run(["config", "--quiet", "explain", "aml.tau"], capsys)[0] == 0
    assert run(["config", "explain", "aml.tau", "--quiet"], capsys)[0] == 0
    assert len(quietened) == 2
    assert app._quietened(["submit", "sweep", "e.yaml", "--quiet"])[-1] == "--quiet"
    assert len(quietened) == 2


def test_ui_opens_the_store_that_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AMLRIS_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///another.db")
    code, text = run(["ui", "--store", "https://tracking.example"], capsys)
    assert code == 0 and "https://tracking.example is a server already" in text
