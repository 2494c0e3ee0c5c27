"""Commands that use a trained model: evaluate, predict, demo, preview, rank."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from aml.errors import UserError
from orchestrator.cli.options import (
    SHARDS,
    Config,
    Json,
    MaxMegapixels,
    Overrides,
    Precision,
    ResultPage,
    Shards,
    checkpoint_folder,
    echo,
    echo_written,
    named_shards,
    result_place,
)

app = typer.Typer()


@app.command()
def evaluate(
    data: Shards,
    out: Annotated[
        Path,
        typer.Option(help="Folder for metrics.json and per_sentence.jsonl.", parser=result_place),
    ],
    checkpoint: Annotated[
        str | None,
        typer.Argument(help="A folder, a run, models:/NAME@champion, or a published .pth file."),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER|FILE.jsonl",
            help="Score these masks, of any model, in place of a checkpoint: PNG files "
            'REF_SENT.png, or lines {"ref_id", "sent_id", "mask": RLE}; without ids in the order '
            "of the split.",
        ),
    ] = None,
    arms: Annotated[
        bool,
        typer.Option(
            "--arms",
            help="Of a sweep: score every confirmed seed of every arm, and compare the arms. Each "
            "trial gets a folder below --out with what evaluate writes, and its scores go to its "
            "run in MLflow.",
        ),
    ] = False,
    splits: Annotated[str, typer.Option(help="As val,testA.")] = "val",
    protocol: Annotated[
        str | None,
        typer.Option(
            help="square: at network size. original: at the picture's size. Default: square, of "
            "predictions original."
        ),
    ] = None,
    corrupt: Annotated[str, typer.Option(help="As fog:3,noise:1 or all:all.")] = "",
    baseline: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="An earlier evaluation that robustness is held against."),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(help="Ray tasks that share the pictures; with one no Ray is started."),
    ] = 1,
    precision: Precision = None,
    batch: Annotated[
        int | None,
        typer.Option(help="Pictures, and sentences, at a time; default: 8 on a CPU, 64 on a GPU."),
    ] = None,
    track: Annotated[
        bool, typer.Option(help="Log the scores on the MLflow run that the checkpoint belongs to.")
    ] = True,
    missing_as_empty: Annotated[
        bool,
        typer.Option(
            "--missing-as-empty",
            help="Of predictions: count a sentence without a mask as one without a pixel.",
        ),
    ] = False,
    size: Annotated[
        int | None,
        typer.Option(help="Of predictions: side in pixels at which the square protocol compares."),
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option(help="Of predictions: how it makes pictures square, square or letterbox."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Of predictions: what the results call the model.")
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Of a published .pth file: BERT's tokenizer; default: bert-base-uncased.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Score a checkpoint, a sweep's arms, or masks of any model on every sentence of splits."""
    from aml.conditions import parse_corruptions
    from orchestrator import evaluation, reporting, storage

    of_single = {
        "--corrupt": corrupt,
        "--baseline": baseline,
        "--precision": precision,
        "--batch": batch,
        "--tokenizer": tokenizer,
    }
    of_checkpoints = of_single | {
        "CHECKPOINT": checkpoint,
        "--arms": arms or None,
        "--workers": None if workers == 1 else workers,
    }
    of_masks = {
        "--missing-as-empty": missing_as_empty or None,
        "--size": size,
        "--fit": fit,
        "--name": name,
    }
    shards = named_shards(data)
    chosen = [split.strip() for split in splits.split(",")]
    folder = None
    if predictions is not None:
        _refuse_given(of_checkpoints, "--predictions")
        masks = evaluation.MasksRequest(
            predictions=predictions,
            shards=shards,
            splits=chosen,
            out=out,
            protocol=protocol or "original",
            image_size=size,
            fit=fit or "square",
            missing_as_empty=missing_as_empty,
            name=name,
        )
        found = evaluation.evaluate_masks(masks)
    elif checkpoint is not None and arms:
        _refuse_given(of_masks | of_single, "--arms")
        lines, rows = reporting.evaluate_arms(
            reporting.find_run_or_part(storage.storage_root(), checkpoint, "arms"),
            shards,
            chosen,
            out,
            protocol=protocol or "square",
            workers=workers,
        )
        for text in lines:
            echo(text)
        if track:
            reporting.log_arms(out)
        if as_json:
            echo(json.dumps(rows))
        return
    elif checkpoint is None:
        raise UserError(
            "nothing to evaluate was named; give a checkpoint or run, or --predictions FOLDER of "
            "masks"
        )
    else:
        _refuse_given(of_masks, "a checkpoint")
        folder = checkpoint_folder(checkpoint, tokenizer)
        request = evaluation.EvaluationRequest(
            checkpoint=folder,
            shards=shards,
            splits=chosen,
            out=out,
            protocol=protocol or "square",
            corruptions=parse_corruptions(corrupt) if corrupt else [],
            baseline=baseline,
            batch=batch,
            precision=precision,
            workers=workers,
        )
        found = evaluation.evaluate_checkpoint(request)
    _show_evaluation(out, found)
    if track and folder is not None:
        evaluation.log_evaluation(folder, out)
    if as_json:
        echo(json.dumps(found))


def _refuse_given(options: dict[str, Any], beside: str) -> None:
    """Raise UserError where an option was given that is not read beside another."""
    if given := [name for name, value in options.items() if value not in (None, "")]:
        raise UserError(f"{given[0]} means nothing beside {beside}; leave one of the two out")


def _show_evaluation(out: Path, found: dict[str, dict]) -> None:
    """Print the scores of an evaluation, their intervals, groups, and published neighbours."""
    from orchestrator import evaluation, reporting

    echo("scores in %; the files hold shares of 1")
    for split, scores in found.items():
        shown = [f"{name} {100 * value:.2f}" for name, value in scores.items() if name != "n"]
        echo(f"{split:20} {'  '.join(shown)}  n {scores['n']}")
    lines = reporting.interval_lines(reporting.write_intervals(out))
    lines += reporting.published_lines(reporting.evaluation_tables([out])["evaluations"])
    lines += evaluation.breakdown_lines(json.loads((out / "breakdown.json").read_text("utf-8")))
    robustness = out / "robustness.json"
    if robustness.exists():
        lines += evaluation.robustness_lines(json.loads(robustness.read_text("utf-8")))
    for text in lines:
        echo(text)
    names = ("metrics.json", "per_sentence.jsonl", "breakdown.json", "intervals.json")
    echo_written(*(out / name for name in names))


@app.command()
def predict(
    checkpoint: str,
    image: Annotated[
        Path | None, typer.Option(help="A picture, or a folder of pictures; with --text.")
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(help="The expression. May be repeated: a picture is encoded once for all."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="URI", help=f"Predict every sentence of --split of these. {SHARDS}"),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Of --data: as val or val,testA.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The mask, PNG (mask.png); of a folder or several expressions the folder of "
            "results (predictions); of --split a folder of PNG masks or FILE.jsonl (masks).",
            parser=result_place,
        ),
    ] = None,
    overlay: Annotated[
        Path | None,
        typer.Option(help="The picture with the mask, PNG.", parser=result_place),
    ] = None,
    probability: Annotated[
        Path | None,
        typer.Option(help="The probability of each pixel, grey PNG.", parser=result_place),
    ] = None,
    precision: Precision = None,
    max_megapixels: Annotated[
        float | None,
        typer.Option(
            metavar="N",
            help="Of --image: millions of pixels of a picture at most; default: 100. Pictures of "
            "--split were held against the limit of `shard`.",
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(help="Of --split: Ray tasks that share the pictures.")
    ] = 1,
) -> None:
    """Segment the referents of sentences in pictures of your own, or of whole splits."""
    from aml.reading import MAX_PIXELS, pixels_of
    from orchestrator import evaluation

    if data is not None or split is not None:
        if data is None or split is None:
            raise UserError("a split is predicted of shards; give both --data and --split")
        mine: dict[str, Any] = {"--image": image, "--text": text, "--overlay": overlay}
        mine |= {"--probability": probability, "--max-megapixels": max_megapixels}
        _refuse_given(mine, "--split")
        place = out or Path("masks")
        count = evaluation.predict_splits(
            checkpoint_folder(checkpoint),
            named_shards(data),
            [one.strip() for one in split.split(",")],
            place,
            precision=precision,
            workers=workers,
        )
        echo(f"wrote {count} masks to {place.absolute()}")
        return
    if image is None or not text:
        raise UserError(
            "nothing to predict was named; give --image and --text, or --data and --split"
        )
    _refuse_given({"--workers": None if workers == 1 else workers}, "--image")
    evaluation.predict_files(
        checkpoint_folder(checkpoint),
        image,
        text,
        out,
        overlay,
        probability,
        precision=precision,
        max_pixels=MAX_PIXELS if max_megapixels is None else pixels_of(max_megapixels),
    )


@app.command()
def demo(
    checkpoint: str,
    beside: Annotated[
        str | None,
        typer.Option(metavar="CHECKPOINT", help="Another one, shown beside the first."),
    ] = None,
    port: int = 7860,
    precision: Precision = None,
    max_megapixels: MaxMegapixels = 50,
) -> int:
    """Serve a page on this machine: drop a picture, type a sentence, see what the model finds.

    It also shows which parts fit the sentence, and which of them training would hide.
    """
    from aml.reading import pixels_of
    from orchestrator import evaluation

    limit = pixels_of(max_megapixels)
    folders = [checkpoint_folder(name) for name in (checkpoint, beside) if name]
    return evaluation.serve_demo(folders, port, precision=precision, max_pixels=limit)


@app.command()
def preview(
    config: Config,
    overrides: Overrides = None,
    n: Annotated[int, typer.Option(help="Pictures.")] = 16,
    out: ResultPage = Path("preview.html"),
    init: Annotated[
        str | None,
        typer.Option(
            metavar="CHECKPOINT", help="Alignment of this model, not of an untrained one."
        ),
    ] = None,
) -> None:
    """Write a page of what would be hidden at these settings."""
    from orchestrator.config import load

    experiment = load(config, overrides or [])
    from orchestrator import evaluation

    weights = checkpoint_folder(init) if init else None
    page = evaluation.preview_masks(experiment, n, out, init=weights)
    echo_written(page)


@app.command()
def rank(
    checkpoint: str,
    data: Shards,
    split: str = "val",
    limit: Annotated[int | None, typer.Option(min=1, help="The first so many sentences.")] = None,
    scales: Annotated[
        str, typer.Option(help="Sizes at which stage 1 sees the image, comma-separated shares.")
    ] = "1,0.375",
    tau: float = 0.4,
    rho: float = 0.5,
) -> None:
    """Measure how well each alignment source and score of a model finds the referent."""
    from orchestrator import evaluation
    from orchestrator.data import read_manifest

    store = named_shards(data)
    read_manifest(store)
    found = evaluation.rank_alignments(
        checkpoint_folder(checkpoint),
        store,
        split=split,
        limit=limit,
        scales=[float(scale) for scale in scales.split(",")],
        tau=tau,
        rho=rho,
    )
    for row in found:
        echo(evaluation.ranking_line(row))
    echo(json.dumps(found))
