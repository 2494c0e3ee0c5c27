"""The experiment file: strict, explained, and the name it gives a run."""

import json
from pathlib import Path

import pytest

from aml.errors import UserError
from aml.models.base import find_class
from aml.models.options import MODELS
from orchestrator.cli.app import main
from orchestrator.config import (
    active_params,
    defaults_of,
    explain,
    from_text,
    load,
    load_matrix,
)
from orchestrator.config.space import METRICS
from orchestrator.config.validation import check_run
from orchestrator.storage.paths import storage_root

ROOT = Path(__file__).parents[3]
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
        ("aml.ta=0.1", "did you mean aml.tau"),
        ("aml.tau=1.5", "aml.tau is 1.5; it must be a number in [0, 1]"),
        ("aml.source=jont", "did you mean joint"),
        ("aml.source=encoder", "scored by probability"),
        ("model.name=smal", "did you mean small"),
        ("model.widht=8", "did you mean model.width"),
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


SHIPPED = [p for p in (ROOT / "experiments").rglob("*.yaml") if "results" not in p.parts]


@pytest.mark.parametrize("path", sorted(SHIPPED), ids=lambda p: p.stem)
def test_every_shipped_experiment_loads_and_names_itself(path):
    from orchestrator.config.validation import check_sweep

    matrix = load_matrix(path)
    assert (matrix or load(path)).name == path.stem
    for experiment in [cell.experiment for cell in matrix.cells] if matrix else [load(path)]:
        check_sweep(experiment)
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
    assert "teacher_decay" not in a.computed()["aml"]
    names = [
        from_text(MINIMAL, ["aml.stage1=teacher", f"aml.teacher_decay={decay}"]).run_name("f")
        for decay in (0.9, 0.99)
    ]
    assert len({a.run_name("f"), *names}) == 3


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
        "name: base\ndata: {train: shards, size: 64}\nmodel: {name: small, width: 64}\n"
        "aml: {tau: 0.3}\nsearch: {space: {aml.tau: [0.1]}}\n"
    )
    top = tmp_path / "top.yaml"
    top.write_text(
        "base: base.yaml\nname: top\naml: {rho: 0.7}\n"
        "search: {space: {aml.rho: [0.2, 0.4]}, seeds: {confirm: 5}}\n"
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
            "search.space={aml: [{source: joint, score: cosine}, {warmup_epochs: 1}], "
            "optim.lr: [1e-3]}"
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


@pytest.mark.parametrize(
    "arm, mode, preset",
    [
        ("two_pass", "two_pass", "calibrated"),
        ("maskris", "maskris", "calibrated"),
        ("oneref", "oneref", "calibrated"),
        ("consistency", "consistency", "calibrated"),
        ("aml/release", "aml", "release"),
        ("random@compute", "random", "calibrated"),
    ],
)
def test_every_arm_is_an_experiment(arm, mode, preset):
    trial = from_text(MINIMAL, [f"search.arms=[{arm}]"]).for_arm(arm, {})
    assert (trial.aml.mode, trial.aml.preset) == (mode, preset)


def test_settings_of_its_own_are_fixed_in_an_arm():
    arms = ["random", "random(rate=0.1)", "aml/paper(tau=0.3, weak=highest)+colour@compute"]
    experiment = from_text(MINIMAL, [f"search.arms={arms}", "aml.noise=0.1"])
    blind, tenth, paper = (experiment.for_arm(arm, {}) for arm in arms)
    assert (blind.aml.rate, tenth.aml.mode, tenth.aml.rate) == (None, "random", 0.1)
    assert (paper.aml.preset, paper.aml.tau, paper.aml.weak) == ("paper", 0.3, "highest")
    assert (paper.aml.score, paper.aml.noise) == ("token_softmax", 0.1)
    assert experiment.for_arm("random(rate=1e-1)", {}).aml.rate == 0.1
    assert paper.data.augment == ["colour"]
    # what the arm fixes is not searched
    assert active_params(None, arms[2], {"aml.tau": 0.5, "aml.rho": 0.5}) == {"aml.rho": 0.5}
    assert active_params(None, "random", {"aml.rate": 0.5, "aml.score": "cosine"}) == {
        "aml.rate": 0.5
    }


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ("random(rat=0.1)", "the setting of the arm random is 'rat' .did you mean rate"),
        ("off(rate=0.1)", "the setting of the arm off is 'rate'; known: none"),
        ("random(score=cosine)", "the setting of the arm random is 'score'"),
        ("random(mode=aml)", "the setting of the arm random is 'mode'"),
        ("random(stage1=teacher)", "the setting of the arm random is 'stage1'"),
        ("aml/calibrated(teacher_decay=0.5)", "aml.stage1 fresh has no teacher"),
        ("random()", "what is in brackets must be settings of masking"),
        ("off(rate=match)", "the setting of the arm off is 'rate'; known: none"),
        ("maskris(rate=match)", "which random alone does"),
        ("aml/calibrated(rate=0.2)", "the setting of the arm aml/calibrated is 'rate'"),
        ("'random(rate=@x)'", "rate of the arm .* is not valid YAML"),
        ("random(rate=010)", "aml.rate is '010'; it must be a number"),
        ("random(rate=0.1 rate=0.2)", "each once"),
        ("random(rate=0.1", "search.arms is 'random.rate=0.1'"),
        ("random(rate=0.1), random( rate=0.1 )", "each once"),
    ],
)
def test_settings_of_an_arm_that_mean_nothing_are_refused(arms, message):
    with pytest.raises(UserError, match=message):
        experiment = from_text(MINIMAL, [f"search.arms=[{arms}]"])
        experiment.for_arm(experiment.search.arms[0], {})
    from_text(MINIMAL, ["search.arms=[random(rate=match score=cosine)]"])


# ---- explained -----------------------------------------------------------------------------------


def test_the_settings_reference_is_what_the_schema_says():
    text = (ROOT / "docs" / "settings.md").read_text("utf-8")
    assert text == explain.settings_reference(), (
        "regenerate it: python -m orchestrator config reference > docs/settings.md"
    )


def told(capsys, *arguments) -> tuple[int, str]:
    """Return exit code and text of `config ...`."""
    with pytest.raises(SystemExit) as end:
        main(["config", *map(str, arguments)])
    found = capsys.readouterr()
    return end.value.code, found.out + found.err


def test_show_says_what_set_each_leaf_and_reads_back(capsys, tmp_path):
    (tmp_path / "base.yaml").write_text(
        "name: base\ndata: {train: shards, size: 64}\naml: {preset: paper}\n"
    )
    (tmp_path / "top.yaml").write_text("base: base.yaml\nname: top\n")
    code, text = told(capsys, "show", tmp_path / "top.yaml", "optim.lr=2e-3", "search.arms=[off]")
    assert code == 0
    assert from_text(text) == load(tmp_path / "top.yaml", ["optim.lr=2e-3", "search.arms=[off]"])
    for line in (
        f"name: top  # file {tmp_path}/top.yaml",
        f"  size: 64  # base {tmp_path}/base.yaml",
        "  lr: 0.002  # override",
        "  rho: 0.25  # preset paper",
        "  batch: 32  # default",
        "  arms: ['off']  # override",
    ):
        assert line in text.splitlines()


@pytest.mark.parametrize(
    ("key", "code", "words"),
    [
        (["aml.tau"], 0, ["a number in [0, 1]", "unit     share", "default  0.5"]),
        (["model.width"], 0, ["(of small)", "(of clipseg)"]),
        (
            ["search.scheduler"],
            0,
            ["search.scheduler.grace (asha)", "search.scheduler.quantile (pbt)"],
        ),
        (["optim.loss"], 0, ["ce, bce or ce+dice"]),
        ([], 0, ["storage.root", "name", "model.adapter_every (detris)"]),
        (["aml.tua"], 2, ["did you mean aml.tau?"]),
        (["warmpu"], 2, ["did you mean optim.warmup?"]),
        (["serch"], 2, ["did you mean search?"]),
        (["nothing.like.it"], 2, ["unknown key nothing"]),
    ],
)
def test_explain(key, code, words, capsys):
    found, text = told(capsys, "explain", *key)
    assert found == code and all(word in text for word in words), text


def test_the_json_schema_is_json_and_knows_every_section(capsys):
    code, text = told(capsys, "schema")
    schema = json.loads(text)
    assert (
        code == 0
        and {"base", "name", "data", "model", "aml", "search"} <= schema["properties"].keys()
    )


# ---- what exists ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_what_its_options_say(name):
    cls, options = find_class(name), MODELS[name]
    assert (cls.name, cls.sources, cls.image_multiple, cls.fuses) == (
        name,
        options.sources,
        options.image_multiple,
        options.fuses,
    )


def test_a_model_of_ones_own_is_taken_by_the_settings_and_looked_up_before_a_run():
    experiment = from_text(
        MINIMAL, ["model={name: my.own:Model, size: 5}", "search.space={model.size: [5, 6]}"]
    )
    assert experiment.model == {"name": "my.own:Model", "size": 5}
    with pytest.raises(UserError, match="there is no module my.own"):
        check_run(experiment)


def test_every_metric_an_epoch_reports_may_be_searched_by(items, make_model):
    from aml.data.batches import steps_per_epoch
    from aml.masking.config import preset
    from aml.masking.masker import Masker
    from aml.training.config import EvalConfig, OptimConfig, TrainConfig
    from aml.training.learner import Learner
    from aml.training.loop import train_epochs

    model = make_model()
    masker = Masker(preset("paper", width=16), model=model, image_size=64)
    learner = Learner(
        model,
        masker,
        optim=OptimConfig(),
        train=TrainConfig(epochs=1, batch=16),
        steps=steps_per_epoch(len(items["train"]), 16),
    )
    (result,) = train_epochs(learner, items["train"], items["val"], EvalConfig(probe=4))
    unsearched = {"epoch", "optim/lr", "train/workers", "val/n", "time/ended"}
    assert result.metrics.keys() - set(METRICS) - unsearched == set()
    assert set(METRICS) - result.metrics.keys() <= {"val/N-acc", "val/T-acc"}


def test_defaults_are_those_of_the_sections_that_an_experiment_has():
    pbt = from_text(MINIMAL + "search: {scheduler: {name: pbt, interval: 3}}\n")
    found = defaults_of(pbt)
    assert found["search.scheduler.interval"] == 2 and "search.scheduler.grace" not in found
    assert found["search.scheduler.name"] == "none" and found["search.method.name"] == "grid"
    own = from_text(MINIMAL + "model: {name: 'my.module:Model', depth: 3}\n")
    assert "model.depth" not in defaults_of(own)
    assert set(defaults_of(pbt)) >= {"train.epochs", "model.width", "aml.tau"}
