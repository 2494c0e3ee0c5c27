"""Commands that use a trained model: evaluate, predict, demo, preview, rank."""

import json
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.options import (
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
    checkpoint: Annotated[str, typer.Argument(help="A folder, a run, or models:/NAME@champion.")],
    data: Shards,
    out: Annotated[
        Path,
        typer.Option(help="Folder for metrics.json and per_sentence.jsonl.", parser=result_place),
    ],
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
    as_json: Json = False,
) -> None:
    """Score a checkpoint on whole splits, every sentence once."""
    from aml.conditions import parse_corruptions
    from orchestrator import evaluation

    folder = checkpoint_folder(checkpoint)
    request = evaluation.EvaluationRequest(
        checkpoint=folder,
        shards=named_shards(data),
        splits=[split.strip() for split in splits.split(",")],
        out=out,
        protocol=protocol,
        corruptions=parse_corruptions(corrupt) if corrupt else [],
        baseline=baseline,
        batch=batch,
        precision=precision,
        workers=workers,
    )
    found = evaluation.evaluate_checkpoint(request)
    for split, scores in found.items():
        shown = [f"{name} {value:.4f}" for name, value in scores.items() if name != "n"]
        echo(f"{split:20} {'  '.join(shown)}  n {scores['n']}")
    for text in evaluation.breakdown_lines(json.loads((out / "breakdown.json").read_text("utf-8"))):
        echo(text)
    robustness = out / "robustness.json"
    if robustness.exists():
        for text in evaluation.robustness_lines(json.loads(robustness.read_text("utf-8"))):
            echo(text)
    echo_written(*(out / name for name in ("metrics.json", "per_sentence.jsonl", "breakdown.json")))
    if track:
        evaluation.log_evaluation(folder, out)
    if as_json:
        echo(json.dumps(found))


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
            help="The mask, PNG (mask.png); of a folder or several expressions the folder of "
            "results (predictions).",
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
    max_megapixels: MaxMegapixels = 100,
) -> None:
    """Segment the referents of sentences in pictures of your own."""
    from aml.reading import pixels_of
    from orchestrator import evaluation

    evaluation.predict_files(
        checkpoint_folder(checkpoint),
        image,
        text,
        out,
        overlay,
        probability,
        precision=precision,
        max_pixels=pixels_of(max_megapixels),
    )


@app.command()
def demo(
    checkpoint: str,
    port: int = 7860,
    precision: Precision = None,
    max_megapixels: MaxMegapixels = 50,
) -> int:
    """Serve a page on this machine: drop a picture, type a sentence, see what the model finds."""
    from aml.reading import pixels_of
    from orchestrator import evaluation

    limit = pixels_of(max_megapixels)
    return evaluation.serve_demo(
        checkpoint_folder(checkpoint), port, precision=precision, max_pixels=limit
    )


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
