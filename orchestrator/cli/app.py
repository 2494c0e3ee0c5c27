"""The commands. Each imports what it needs when it runs, so that --help answers at once.

Exit codes: 0 done; 1 the run failed; 2 the input is wrong, with one sentence; 130 interrupted, state saved.
"""

import errno
import json
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from aml.errors import RunError, UserError
from orchestrator import utils
from orchestrator.storage import storage_root
from orchestrator.utils import redact


class Interrupted(Exception):
    """A command was, that does not say so itself."""


class Commands(TyperGroup):
    """Typer would end an interrupted one without a word."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted from error


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Alignment-aware masked learning, measured honestly.",
)

data_app = typer.Typer(no_args_is_help=True, help="Look at shards.")

bench_app = typer.Typer(no_args_is_help=True, help="Measure; JSON on the last line.")

app.add_typer(data_app, name="data")

app.add_typer(bench_app, name="bench")

Config = Annotated[str, typer.Argument(metavar="CONFIG", help="An experiment's YAML file.")]

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Dotted settings, as optim.lr=1e-4."),
]

Resume = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Continue this run, whatever the present config says."),
]

Fresh = Annotated[
    bool,
    typer.Option(
        "--fresh", help="Start another run instead of continuing the one of the same settings."
    ),
]

Precision = Annotated[
    str | None,
    typer.Option(help="fp32, bf16 or fp16; default: training's on a GPU, fp32 on a CPU."),
]

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on the last line.")]


def main(arguments: list[str] | None = None) -> None:
    """Run a command and leave with its exit code."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, utils.stop_at_once)
    try:
        sys.exit(app(arguments, standalone_mode=False) or 0)
    except (UserError, RunError) as error:
        print(f"error: {redact(error)}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)
    except Interrupted:
        print("interrupted; give the same command again", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        # typer vendors its own click; its usage errors are known by what they can do
        if hasattr(error, "show") and hasattr(error, "exit_code"):
            error.show()
            sys.exit(error.exit_code)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            print(
                f"error: {error.filename or 'a file'} could not be written ({error.strerror}); make room, then give the same command again",
                file=sys.stderr,
            )
        else:
            print(redact(traceback.format_exc()), file=sys.stderr, end="")
        sys.exit(1)


def say(text: str) -> None:
    print(redact(text), flush=True)


@app.command()
def synth(
    out: Path,
    dataset: Annotated[str, typer.Option(help="refcoco, refcoco+ or refcocog.")] = "refcoco",
    images: Annotated[int, typer.Option(help="Pictures.")] = 2000,
    size: Annotated[int, typer.Option(metavar="PX", help="Longer side of a picture.")] = 128,
    seed: int = 0,
) -> None:
    """Generate a RefCOCO look-alike in REFER's own files."""
    from aml.synthetic import generate_dataset

    counts = generate_dataset(out, dataset, images=images, size=size, seed=seed)
    for split, c in counts.items():
        say(f"{split:14} {c['refs']:6} refs {c['sentences']:7} sentences {c['images']:6} images")


@app.command()
def shard(
    refer_root: Annotated[
        Path | None,
        typer.Option(help="Holds <dataset>/refs(<split_by>).p and <dataset>/instances.json."),
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Holds the JPEGs.")] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            help="Your own data instead: CSV or JSON-lines of image, expression, mask, split; image_id, ref_id if you like."
        ),
    ] = None,
    dataset: Annotated[
        str, typer.Option(help="refcoco, refcoco+, refcocog or grefcoco.")
    ] = "refcoco",
    split_by: Annotated[str, typer.Option(help="unc, umd or google.")] = "unc",
    out: Annotated[
        str | None, typer.Option(metavar="URI", help="Folder or s3:// address of the shards.")
    ] = None,
    verify: Annotated[
        str | None, typer.Option(metavar="URI", help="Re-read shards and report damage instead.")
    ] = None,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave images out that do not decode.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Convert annotations and images once into shards."""
    from orchestrator import storage
    from orchestrator.cluster import init_ray
    from orchestrator.data import describe_counts, pack_rows, verify_shards, write_shards
    from orchestrator.storage import storage_root

    if verify:
        found = verify_shards(storage.Filesystem(verify, storage_root()), say)
        say(f"{verify} is whole: {describe_counts(found)}")
    elif not (out and (table or (refer_root and images))) or (table and refer_root):
        raise UserError(
            "shard needs --refer-root, --images and --out (or --table and --out, or --verify); give all three"
        )
    else:
        from aml.data import against_published, read_refer, read_table

        # wrong input is refused before Ray starts
        packed = pack_rows(
            read_table(table, images)
            if table
            else read_refer(refer_root, images, dataset, split_by)
        )
        init_ray()
        found = write_shards(
            packed,
            storage.Filesystem(out, storage_root()),
            skip_unreadable=skip_unreadable,
            say=say,
        )
        for error in found["skipped"]:
            say(f"left out: {error}")
        for split, c in found["splits"].items():
            nothing = f" {c['no_target']:6} sentences without a target" if "no_target" in c else ""
            say(
                f"{split:14} {c['refs']:6} refs {c['sentences']:7} sentences {c['images']:6} images{nothing}"
            )
        if difference := against_published(found["dataset"], found["split_by"], found["splits"]):
            say(difference)
        say(f"wrote {out}, fingerprint {found['fingerprint']}")
    if as_json:
        say(json.dumps({"splits": found["splits"], "fingerprint": found["fingerprint"]}))


@data_app.command("show")
def data_show(uri: str, split: str = "val", n: int = 12, out: Path = Path("data.html")) -> None:
    """A page of pictures with masks and sentences, and statistics."""
    from orchestrator import storage
    from orchestrator.evaluation import show_data
    from orchestrator.storage import storage_root

    say(f"wrote {show_data(storage.Filesystem(uri, storage_root()), split, n, out)}")


@app.command()
def train(
    config: Config,
    overrides: Overrides = None,
    resume: Resume = None,
    fresh: Fresh = False,
    init: Annotated[
        str | None,
        typer.Option(
            metavar="CHECKPOINT", help="Start from these weights; a published .pth file will do."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run and start nothing.")
    ] = False,
) -> int:
    """Train one model with the settings of CONFIG, on one or many workers."""
    from orchestrator import training
    from orchestrator.config import load

    experiment = load(config, overrides or [])
    announce(experiment)
    return training.train(
        experiment, resume=resume, fresh=fresh, init=weights(init), dry_run=dry_run, say=say
    )


@app.command()
def sweep(
    config: Config,
    overrides: Overrides = None,
    resume: Resume = None,
    fresh: Fresh = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print trials, placement and estimated time; start nothing."
        ),
    ] = False,
) -> int:
    """Search settings in every arm, confirm the best on fresh seeds, compare, report."""
    from orchestrator.config import load
    from orchestrator.sweep import run_sweep

    experiment = load(config, overrides or [])
    announce(experiment)
    return run_sweep(experiment, resume=resume, fresh=fresh, dry_run=dry_run, say=say)


@app.command()
def evaluate(
    checkpoint: Annotated[str, typer.Argument(help="A folder, a run, or models:/NAME@champion.")],
    data: Annotated[str, typer.Option(metavar="URI", help="Shards.")],
    out: Annotated[Path, typer.Option(help="Folder for metrics.json and per_sentence.jsonl.")],
    splits: Annotated[str, typer.Option(help="As val,testA.")] = "val",
    protocol: Annotated[
        str, typer.Option(help="square: at network size. original: at the picture's size.")
    ] = "square",
    corrupt: Annotated[str, typer.Option(help="As fog:3,noise:1 or all:all.")] = "",
    baseline: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="An earlier evaluation that robustness is held against."),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(
            help="Ray tasks that share the pictures; with one no Ray is started. The counts are the same."
        ),
    ] = 1,
    precision: Precision = None,
    batch: Annotated[
        int | None,
        typer.Option(help="Pictures, and sentences, at a time; default: 8 on a CPU, 64 on a GPU."),
    ] = None,
    track: Annotated[
        bool, typer.Option(help="Log the scores on the MLflow run that the checkpoint belongs to.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Score a checkpoint on whole splits, every sentence once."""
    from aml.data import parse_corruptions
    from orchestrator import storage
    from orchestrator.evaluation import (
        breakdown_lines,
        evaluate_checkpoint,
        log_evaluation,
        robustness_lines,
    )
    from orchestrator.storage import storage_root

    names = [s for s in splits.split(",") if s]
    folder = checkpoint_folder(checkpoint)
    found = evaluate_checkpoint(
        folder,
        storage.Filesystem(data, storage_root()),
        names,
        protocol=protocol,
        corruptions=parse_corruptions(corrupt) if corrupt else [],
        out=out,
        baseline=baseline,
        workers=workers,
        precision=precision,
        batch=batch,
        say=say,
    )
    for split, scores in found.items():
        say(
            f"{split:20} "
            + "  ".join(f"{k} {v:.4f}" if k != "n" else f"n {v}" for k, v in scores.items())
        )
    for text in breakdown_lines(json.loads((out / "breakdown.json").read_text("utf-8"))):
        say(text)
    robust = out / "robustness.json"
    for text in robustness_lines(json.loads(robust.read_text("utf-8"))) if robust.exists() else ():
        say(text)
    say(f"wrote {out / 'metrics.json'}, {out / 'per_sentence.jsonl'} and {out / 'breakdown.json'}")
    if track:
        log_evaluation(folder, out, say)
    if as_json:
        say(json.dumps(found))


@app.command()
def predict(
    checkpoint: str,
    image: Annotated[Path, typer.Option(help="A picture, or a folder of pictures.")],
    text: Annotated[
        list[str],
        typer.Option(help="The expression. May be repeated: a picture is encoded once for all."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="The mask, PNG (mask.png); of a folder or several expressions the folder of results (predictions)."
        ),
    ] = None,
    overlay: Annotated[Path | None, typer.Option(help="The picture with the mask, PNG.")] = None,
    probability: Annotated[
        Path | None, typer.Option(help="The probability of each pixel, grey PNG.")
    ] = None,
    precision: Precision = None,
) -> None:
    """Segment the referents of sentences in pictures of your own."""
    from orchestrator.evaluation import predict_files

    predict_files(
        checkpoint_folder(checkpoint),
        image,
        text,
        out,
        overlay,
        probability,
        precision=precision,
        say=say,
    )


@app.command()
def demo(checkpoint: str, port: int = 7860, precision: Precision = None) -> int:
    """A page on this machine: drop a picture, type a sentence, see what the model finds."""
    from orchestrator.evaluation import serve_demo

    return serve_demo(checkpoint_folder(checkpoint), port, precision=precision, say=say)


@app.command()
def preview(
    config: Config,
    overrides: Overrides = None,
    n: Annotated[int, typer.Option(help="Pictures.")] = 16,
    out: Annotated[Path, typer.Option(help="The page.")] = Path("preview.html"),
    init: Annotated[
        str | None,
        typer.Option(
            metavar="CHECKPOINT", help="Alignment of this model, not of an untrained one."
        ),
    ] = None,
) -> None:
    """A page of what would be hidden at these settings."""
    from orchestrator.config import load
    from orchestrator.evaluation import preview_masks

    say(
        f"wrote {preview_masks(load(config, overrides or []), n, out, init=checkpoint_folder(init))}"
    )


@app.command()
def rank(
    checkpoint: str,
    data: Annotated[str, typer.Option(help="URI of shards.")],
    split: str = "val",
    limit: Annotated[int | None, typer.Option(help="The first so many sentences.")] = None,
    scales: Annotated[
        str, typer.Option(help="Sizes at which stage 1 sees the image, comma-separated shares.")
    ] = "1,0.375",
    tau: float = 0.4,
    rho: float = 0.5,
) -> None:
    """How well each alignment source and score of a trained model finds the referent, and what masks made of it give away."""
    from orchestrator import storage
    from orchestrator.data import read_manifest
    from orchestrator.evaluation import rank_alignments, ranking_line
    from orchestrator.storage import storage_root

    store = storage.Filesystem(data, storage_root())
    read_manifest(store)
    found = rank_alignments(
        checkpoint_folder(checkpoint),
        store,
        split=split,
        limit=limit,
        scales=[float(s) for s in scales.split(",")],
        tau=tau,
        rho=rho,
    )
    for row in found:
        say(ranking_line(row))
    say(json.dumps(found))


@app.command()
def compare(
    sides: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN RUN...",
            help="Runs, RUN:ARM of a sweep, or folders made by evaluate --out.",
        ),
    ],
    metric: Annotated[
        str, typer.Option(help="Of runs: a validation metric of the last epoch.")
    ] = "val/mIoU",
    as_json: Json = False,
) -> None:
    """Is A better than B, by how much, how sure."""
    from orchestrator import reporting
    from orchestrator.storage import storage_root

    found = reporting.compare_runs(sides, storage_root(), metric=metric, say=say)
    if as_json:
        say(json.dumps(found))


@app.command()
def reproduce(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A training, or one trial of a sweep as RUN:TRIAL.")
    ],
    as_json: Json = False,
) -> int:
    """Run the same settings, data, code and seed again and say whether the metrics agree. Exit code 1 where they do not."""
    from orchestrator.storage import storage_root
    from orchestrator.sweep import reproduce_run

    found = reproduce_run(run, storage_root(), say=say)
    if as_json:
        say(json.dumps(found))
    return 0 if found["agrees"] else 1


@app.command()
def report(
    run: str,
    out: Annotated[
        Path | None, typer.Option(help="Folder; default: the run's own report/.")
    ] = None,
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="Show this evaluation too, besides those in the run's folder. May be repeated.",
        ),
    ] = None,
) -> None:
    """Write a run's page and tables again, from its folder alone."""
    from orchestrator import reporting, storage
    from orchestrator.storage import storage_root

    folder = Path(run) if Path(run).is_dir() else storage.find_run(storage_root(), run).folder
    say(f"wrote {reporting.write_report(folder, out, evaluation or [])}")


@app.command("runs")
def runs_() -> None:
    """What is there: state, best, disk."""
    from orchestrator import storage, tracking
    from orchestrator.storage import storage_root

    found = storage.list_runs(storage_root())
    for run in found:
        say(storage.run_line(run))
    for text in tracking.end_lost(
        storage_root(), {run.state["name"] for run in found if storage.is_lost(run)}
    ):
        say(text)
    if not found:
        say(f"no runs under {storage_root()}")


@app.command()
def stop(name: str) -> None:
    """Interrupt a run of this machine; its state is saved and the same command continues it."""
    from orchestrator import storage
    from orchestrator.storage import storage_root

    live = [
        r
        for r in storage.list_runs(storage_root())
        if storage.lock_holder(r) and r.state.get("name") == name
    ]
    run = live[0] if live else storage.find_run(storage_root(), name)
    pid = storage.lock_holder(run)
    if pid is None:
        raise UserError(
            f"{run.name} is not being worked on by any process of this machine; nothing to stop"
        )
    os.kill(pid, signal.SIGINT)
    say(f"asked process {pid} to stop {run.name}")


@app.command(
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "allow_interspersed_args": False,
    }
)
def submit(
    context: typer.Context,
    address: Annotated[
        str | None, typer.Option(metavar="URL", help="The cluster's dashboard.")
    ] = None,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow", help="Print the job's log until it ends, and leave with its exit code."
        ),
    ] = False,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Hand this variable's value over. May be repeated."),
    ] = None,
    secret_from_env: Annotated[
        bool,
        typer.Option("--secret-from-env", help="Even where --env names what looks like a secret."),
    ] = False,
    list_: Annotated[bool, typer.Option("--list", help="The cluster's jobs.")] = False,
    stop_: Annotated[
        str | None, typer.Option("--stop", metavar="ID", help="End a job; its state is saved.")
    ] = None,
    logs: Annotated[str | None, typer.Option(metavar="ID", help="What a job has printed.")] = None,
) -> int:
    """Run train, sweep or evaluate as a job of a Ray cluster: submit [OPTIONS] sweep CONFIG ..."""
    from orchestrator.cluster import (
        check_command,
        connect_jobs,
        follow_job,
        job_line,
        job_logs,
        list_jobs,
        package_working_dir,
        runtime_environment,
        stop_job,
        submit_job,
    )

    asked = [bool(context.args), list_, stop_ is not None, logs is not None]
    if sum(asked) != 1:
        raise UserError(
            "submit needs one thing to do: a command (train, sweep, evaluate), --list, --stop ID or --logs ID; give one of them"
        )
    if not context.args:
        client = connect_jobs(address)
        if list_:
            for text in [job_line(job) for job in list_jobs(client)] or ["no jobs"]:
                say(text)
        elif logs is not None:
            say(job_logs(client, logs))
        else:
            say(f"asked {stop_} to stop" if stop_job(client, stop_) else f"{stop_} is over already")
        return 0
    root = project_root()
    command = check_command(context.args, parameters, root)
    handed, packed = (
        runtime_environment(env or [], secret_from_env=secret_from_env),
        package_working_dir(root),
    )
    client = connect_jobs(address)
    job = submit_job(client, client.get_address(), command, packed, handed, say)
    return follow_job(client, job, say) if follow else 0


@app.command()
def prune() -> None:
    """Remove what only unfinished runs need from finished ones: training states, logs."""
    from orchestrator import storage
    from orchestrator.storage import storage_root

    for text in storage.prune_runs(storage_root()) or ["nothing to remove"]:
        say(text)


@app.command()
def ui(port: int = 5000, host: str = "127.0.0.1") -> int:
    """The MLflow UI on the tracking store in use."""
    from orchestrator.cli import doctor as doctor_module

    return doctor_module.ui(host, port, say)


@app.command()
def doctor() -> int:
    """What is installed, what is reachable, what is missing."""
    from orchestrator.cli import doctor as doctor_module

    return doctor_module.doctor(say)


@bench_app.command("trial")
def bench_trial(
    epochs: Annotated[int, typer.Option(help="Alternating epochs of each loop.")] = 10,
    as_is: Annotated[
        bool,
        typer.Option("--distributed/--no-distributed", help="Also start one distributed trial."),
    ] = True,
) -> None:
    """Start-up of light and distributed trials, and an epoch's time against the plain loop's."""
    from orchestrator import benchmarks

    say(json.dumps(benchmarks.measure_trial(epochs=epochs, distributed=as_is, say=say)))


@bench_app.command("scale")
def bench_scale(
    trials: Annotated[
        list[int] | None,
        typer.Option(
            help="Trials of a sweep; repeat it for several sizes. Default: 100, 1000 and 10000."
        ),
    ] = None,
    method: Annotated[str, typer.Option(help="grid, random or tpe.")] = "random",
) -> None:
    """Bookkeeping of sweeps of many trivial trials, without Ray and without a store behind MLflow's queue: time, memory, MLflow calls."""
    from orchestrator import benchmarks

    say(json.dumps(benchmarks.measure_scale(trials or [100, 1000, 10000], method, say=say)))


@bench_app.command("data")
def bench_data(
    images: Annotated[int, typer.Option(help="Generated pictures of 640 px.")] = 2000,
    size: Annotated[int, typer.Option(metavar="PX", help="Side of the network image.")] = 448,
    samples: Annotated[
        int, typer.Option(help="Of the published way, about so many are timed.")
    ] = 3000,
) -> None:
    """Samples a second and core against a torch DataLoader as published; conversion; memory held; S3."""
    from orchestrator import benchmarks

    say(json.dumps(benchmarks.measure_data(images=images, size=size, samples=samples, say=say)))


def parameters(name: str, arguments: list[str]) -> dict:
    """What a command's arguments mean, without running it. Usage errors are the command's own."""
    command = typer.main.get_command(app).commands[name]
    return command.make_context(f"orchestrator {name}", list(arguments)).params


def project_root() -> Path:
    """The folder a job gets: the project's, or where it is installed, the present one."""
    source = Path(__file__).parents[2]
    return source if (source / "pyproject.toml").exists() else Path.cwd()


def announce(experiment) -> None:
    """The first line: where things go."""
    from orchestrator import storage, tracking

    root, bucket = (
        storage_root(experiment.storage.root),
        storage.bucket_of(storage_root(experiment.storage.root)),
    )
    say(f"{experiment.name}: results go to {f'{bucket}, by way of {root}' if bucket else root}")
    if (
        bucket
        and experiment.tracking.uri != "none"
        and (store := tracking.tracking_uri(experiment.tracking.uri, root)).startswith("sqlite:")
    ):
        say(
            f"note: MLflow's store is a file of this machine ({store}); set MLFLOW_TRACKING_URI to a server that outlives it"
        )


def weights(text: str | None) -> Path | None:
    """What training may start from: a checkpoint's folder, or a file as the authors of a model published it."""
    file = Path(text or "").expanduser()
    return file.absolute() if file.is_file() else checkpoint_folder(text)


def checkpoint_folder(text: str | None) -> Path | None:
    if text is None:
        return None
    from orchestrator import tracking
    from orchestrator.storage import storage_root

    return tracking.find_checkpoint(text, storage_root(), None).absolute()
