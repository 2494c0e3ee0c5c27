"""The experiment file: strict, explained, and the name it gives a run."""

from pathlib import Path

import pytest

from aml.errors import UserError
from orchestrator.config.schema import from_text, load
from orchestrator.storage.paths import storage_root

ROOT = Path(__file__).parents[1]
MINIMAL = "name: x\ndata: {train: shards}\n"


def test_defaults_fill_what_is_not_said():
    experiment = from_text(MINIMAL)
    assert (experiment.data.size, experiment.aml.arm, experiment.model["name"]) == (
        112,
        "aml/calibrated",
        "small",
    )
    assert experiment.search.arms == ["off", "random", "aml/calibrated"]


def test_overrides_are_yaml_and_reach_any_leaf():
    experiment = from_text(
        MINIMAL,
        [
            "aml.tau=0.3",
            "optim.lr=1e-4",
            "model.width=96",
            "search.arms=[off, random]",
            "data.val_limit=null",
        ],
    )
    assert (experiment.aml.tau, experiment.optim.lr, experiment.model["width"]) == (0.3, 1e-4, 96)
    assert experiment.search.arms == ["off", "random"]  # YAML 1.1 would read `off` as false


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optm.lr=1", "did you mean optim"),
        ("optim.learning=1", "unknown key optim.learning"),
        ("aml.ta=0.1", "did you mean tau"),
        ("aml.tau=1.5", "aml.tau is 1.5; it must be a number in [0, 1]"),
        ("aml.source=jont", "did you mean joint"),
        ("aml.source=encoder", "scored by probability"),
        ("model.name=smal", "did you mean small"),
        ("model.widht=8", "did you mean width"),
        ("train.epochs=two", "train.epochs is 'two'; it must be a whole number"),
        ("train.batch=33", None),
        ("resources.workers=500", "is less than an item for each of 500 workers x 1 micro-steps"),
        ("resources.min_workers=2", "resources.min_workers is 2; give 1 to 1"),
        ("resources.gpus_per_worker=1.5", "a part of one GPU or a whole number"),
        ("resources.memory_gb=0", "resources.memory_gb is 0"),
        ("search.method=grd", "did you mean grid"),
        ("search.arms=[offf]", "did you mean off"),
        ("search.space={aml.tau: {low: 0, high: 1}}", "a grid cannot enumerate"),
        ("search.space={tau: [0.1]}", "dotted key"),
        ("search.method=tpe", "needs search.trials"),
        ("aml.tau=[0.1", "override aml.tau=[0.1 is not valid YAML"),
        ("optim=3", "optim is 3; it must be a mapping"),
        ("name=a/b", "letters, digits"),
        ("nonsense", "not key=value"),
        ("data.size=true", "data.size is True"),
    ],
)
def test_wrong_values_get_one_sentence(override, said):
    if said is None:
        from_text(MINIMAL, [override])
        return
    with pytest.raises(UserError) as caught:
        from_text(MINIMAL, [override])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["- a\n", "name: x\n", "name: [\n", "data: {train: x}\n"])
def test_a_file_that_is_no_experiment_is_refused(text):
    with pytest.raises(UserError):
        from_text(text)


def test_a_missing_file_is_named():
    with pytest.raises(UserError, match="nowhere.yaml cannot be read"):
        load("nowhere.yaml")


@pytest.mark.parametrize(
    "path", sorted((ROOT / "experiments").rglob("*.yaml")), ids=lambda p: p.stem
)
def test_every_shipped_experiment_loads_and_names_itself(path):
    from orchestrator.search.plan import check_plan

    experiment = load(path)
    assert experiment.name == path.stem
    check_plan(experiment)
    head = path.read_text()
    assert "# Run:" in head and "# Cost:" in head and "# Expect:" in head


def test_the_run_name_follows_settings_and_data_but_not_the_machines():
    a = from_text(MINIMAL)
    assert a.run_name("f") == from_text(
        MINIMAL, ["resources.workers=2", "search.max_concurrent=1", "tracking.uri=none"]
    ).run_name("f")
    assert (
        len(
            {
                a.run_name("f"),
                a.run_name("g"),
                from_text(MINIMAL, ["aml.tau=0.4"]).run_name("f"),
                from_text(MINIMAL, ["seed=1"]).run_name("f"),
            }
        )
        == 4
    )
    assert a.run_name("f").startswith("x-") and len(a.run_name("f")) == 10


def test_a_resolved_experiment_reads_back_as_itself():
    a = from_text(
        MINIMAL, ["aml.preset=paper", "aml.tau=0.3", "search.space={optim.lr: [1e-3, 1e-4]}"]
    )
    assert from_text(a.to_yaml()) == a


def test_an_arm_keeps_explicit_settings_and_takes_its_preset():
    base = from_text(MINIMAL, ["aml.block=16"])
    paper = base.for_arm("aml/paper", {"aml.tau": 0.1})
    assert (paper.aml.arm, paper.aml.score, paper.aml.block, paper.aml.tau) == (
        "aml/paper",
        "token_softmax",
        16,
        0.1,
    )
    random = base.for_arm("random", {"aml.tau": 0.5, "aml.rho": 0.4})
    assert random.aml.coordinates == (1.0, 0.2)
    off = base.for_arm("off", {"aml.tau": 0.5, "optim.lr": 1.0})
    assert off.aml.coordinates == (0.0, 0.0) and off.optim.lr == 1.0


def test_results_go_to_the_home_folder_inside_a_ray_job(monkeypatch, tmp_path):
    monkeypatch.delenv("AMLRIS_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    assert storage_root() == tmp_path / "runs"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert storage_root() == Path.home() / "amlris"
    monkeypatch.setenv("AMLRIS_HOME", str(tmp_path / "given"))
    assert storage_root() == tmp_path / "given"


def test_a_base_is_changed_key_by_key(tmp_path):
    (tmp_path / "base.yaml").write_text(
        "name: base\ndata: {train: shards, size: 64}\nmodel: {name: small, width: 64}\naml: {tau: 0.3}\nsearch: {space: {aml.tau: [0.1]}}\n"
    )
    top = tmp_path / "top.yaml"
    top.write_text(
        "base: base.yaml\nname: top\naml: {rho: 0.7}\nsearch: {space: {aml.rho: [0.2, 0.4]}, seeds: {confirm: 5}}\n"
    )
    experiment = load(top, ["train.epochs=3"])
    assert (
        experiment.name,
        experiment.data.size,
        experiment.model["width"],
        experiment.train.epochs,
    ) == ("top", 64, 64, 3)
    assert (experiment.aml.tau, experiment.aml.rho) == (0.3, 0.7)
    assert (
        experiment.search.space == {"aml.rho": [0.2, 0.4]} and experiment.search.seeds.confirm == 5
    )
    other = tmp_path / "other.yaml"
    other.write_text(
        "base: base.yaml\nname: other\ndata: {size: 96}\nmodel: {name: clipseg, weights: words}\n"
    )
    experiment = load(top, [f"base={other}"])
    assert (experiment.name, experiment.data.size, experiment.model["name"]) == (
        "top",
        96,
        "clipseg",
    )


def test_bases_in_a_circle_are_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    with pytest.raises(UserError, match="which is built on it in turn"):
        load(tmp_path / "a.yaml")


def test_settings_that_go_together_are_one_dimension():
    experiment = from_text(
        MINIMAL,
        [
            "search.space={aml: [{source: joint, score: cosine}, {warmup_epochs: 1}], optim.lr: [1e-3]}"
        ],
    )
    assert experiment.search.dimensions == {
        "aml.source",
        "aml.score",
        "aml.warmup_epochs",
        "optim.lr",
    }
    with pytest.raises(UserError, match="belong to a whole section"):
        from_text(
            MINIMAL, ["search.space={aml: [{tau: 0.5}]}", "search.method=random", "search.trials=2"]
        )


@pytest.mark.parametrize("arm, mode, preset", [("two_pass", "two_pass", "calibrated"), ("maskris", "maskris", "calibrated"),
                                               ("aml/release", "aml", "release"), ("random@compute", "random", "calibrated")])  # fmt: skip
def test_every_arm_is_an_experiment(arm, mode, preset):
    trial = from_text(MINIMAL, [f"search.arms=[{arm}]"]).for_arm(arm, {})
    assert (trial.aml.mode, trial.aml.preset) == (mode, preset)
