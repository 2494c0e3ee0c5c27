"""Commands that make, show and compare data: synth, shard, data show, diff and audit."""

import json
from functools import partial
from pathlib import Path
from typing import Annotated, cast

import typer

from aml.errors import UserError
from orchestrator.cli.options import (
    SHARDS,
    Json,
    MaxMegapixels,
    ResultPage,
    echo,
    echo_written,
    named_shards,
    result_place,
)

app = typer.Typer()
data_app = typer.Typer(no_args_is_help=True, help="Look at shards.")
app.add_typer(data_app, name="data")


@app.command()
def synth(
    out: Annotated[Path, typer.Argument(metavar="OUT", parser=result_place)],
    dataset: Annotated[str, typer.Option(help="refcoco, refcoco+ or refcocog.")] = "refcoco",
    images: Annotated[int, typer.Option(help="Pictures.")] = 2000,
    size: Annotated[int, typer.Option(metavar="PX", help="Longer side of a picture.")] = 128,
    seed: int = 0,
    cutouts: Annotated[
        Path | None,
        typer.Option(
            metavar="JSON",
            help="Compose scenes of photographs: COCO's instances file, whose objects are cut out.",
        ),
    ] = None,
    photographs: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Holds the photographs of --cutouts.")
    ] = None,
) -> None:
    """Generate scenes with referring expressions, drawn or composed, in REFER's own files."""
    from aml.synthetic import compose_dataset, generate_dataset
    from orchestrator.utils import Progress

    if bool(cutouts) != bool(photographs):
        raise UserError("synth takes --cutouts and --photographs together; give both, or none")
    with Progress("generating", images, "pictures") as progress:
        generate = generate_dataset
        if cutouts and photographs:
            generate = partial(compose_dataset, cutouts=cutouts, photographs=photographs)
        counts = generate(
            out, dataset=dataset, images=images, size=size, seed=seed, on_picture=progress.add
        )
    for split, count in counts.items():
        echo(_count_line(split, count))
    echo_written(out)


@app.command()
def shard(
    refer_root: Annotated[
        Path | None,
        typer.Option(help="Holds <dataset>/refs(<split_by>).p and <dataset>/instances.json."),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Holds the pictures, in folders or not.")
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            help="Your own data instead: CSV or JSON-lines of image, expression, mask, split; "
            "image_id, ref_id if you like."
        ),
    ] = None,
    dataset: Annotated[
        str,
        typer.Option(help="Folder in --refer-root: refcoco, refcoco+, refcocog, grefcoco, any."),
    ] = "refcoco",
    split_by: Annotated[
        str, typer.Option(help="Name in refs(...).p: unc, umd, google or another.")
    ] = "unc",
    out: Annotated[str | None, typer.Option(metavar="URI", help=SHARDS)] = None,
    verify: Annotated[
        str | None,
        typer.Option(
            metavar="URI", help="Re-read shards, named as for --out, and report damage instead."
        ),
    ] = None,
    skip_unreadable: Annotated[
        bool,
        typer.Option(
            "--skip-unreadable",
            help="Leave out what cannot be used (pictures that do not decode or are missing, refs "
            "without a mask, sentences without a word), counted by reason.",
        ),
    ] = False,
    max_megapixels: MaxMegapixels = 100,
    as_json: Json = False,
) -> None:
    """Convert annotations and images once into shards.

    Masks lie on the pixels of a picture's file: EXIF's orientation is not applied.
    """
    from orchestrator import data

    if not verify:
        complete = out and (table or (refer_root and images))
        if not complete or (table and refer_root):
            raise UserError(
                "shard needs --refer-root, --images and --out (or --table and --out, or --verify); "
                "give all three"
            )
        found = _write(
            table, refer_root, images, dataset, split_by, str(out), skip_unreadable, max_megapixels
        )
    else:
        store = named_shards(verify)
        found = data.verify_shards(store)
        echo(f"{store.uri} is whole: {data.describe_counts(found)}")
    if as_json:
        shown = {key: found[key] for key in ("splits", "fingerprint")}
        shown["found"] = {k: v for k, v in found.get("found", {}).items() if k != "left_out"}
        echo(json.dumps(shown | {"left_out": data.left_out(found)}))


def _write(
    table: Path | None,
    refer_root: Path | None,
    images: Path | None,
    dataset: str,
    split_by: str,
    out: str,
    skip_unreadable: bool,
    max_megapixels: float,
) -> dict:
    """Convert a table or a REFER folder; wrong input is refused before Ray starts.

    Args:
        table: A CSV or JSON-lines file, or None.
        refer_root: The folder of REFER's files, where there is no table.
        images: The folder of the pictures.
        dataset: A data set's name, as its folder in refer_root.
        split_by: Name of the splitting, as in refs(split_by).p.
        out: Folder or address of the shards.
        skip_unreadable: Leave out what cannot be used instead of refusing it.
        max_megapixels: Millions of pixels of a picture at most.

    Returns:
        The manifest of the shards.
    """
    from aml.data import Findings, against_published, read_refer, read_table
    from aml.reading import pixels_of
    from orchestrator import data

    limit = pixels_of(max_megapixels)
    store = named_shards(out)
    data.check_output(store, None)
    findings = Findings()
    if table:
        rows = read_table(table, images, limit)
        findings.files.append(table.name)
    else:
        rows = read_refer(
            cast(Path, refer_root),
            cast(Path, images),
            dataset,
            split_by,
            limit,
            skip_unusable=skip_unreadable,
            findings=findings,
        )
    packed = data.pack_rows(rows, findings)
    found = data.write_shards(packed, store, skip_unreadable=skip_unreadable)
    for error in found["skipped"]:
        echo(f"left out: {error}")
    for line in data.found_lines(found):
        echo(line)
    for split, count in found["splits"].items():
        echo(_count_line(split, count))
    if difference := against_published(found["dataset"], found["split_by"], found["splits"]):
        echo(difference)
    echo(f"wrote {store.uri}, fingerprint {found['fingerprint']}")
    return found


def _count_line(split: str, count: dict) -> str:
    """Return a split's counts in one line."""
    line = (
        f"{split:14} {count['refs']:6} refs {count['sentences']:7} sentences "
        f"{count['images']:6} images"
    )
    if "no_target" in count:
        line += f" {count['no_target']:6} sentences without a target"
    return line


@data_app.command("show")
def show(
    uri: Annotated[str, typer.Argument(help=SHARDS)],
    split: str = "val",
    n: int = 12,
    out: ResultPage = Path("data.html"),
) -> None:
    """Write a page of pictures with masks and sentences, and statistics."""
    from orchestrator import evaluation

    echo_written(evaluation.show_data(named_shards(uri), split, n, out))


@data_app.command("diff")
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help=SHARDS)],
    b: Annotated[str, typer.Argument(metavar="B", help="Another copy of the data set.")],
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="An evaluation on A (`evaluate --out DIR`): say what B would do to its scores.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare two copies of a data set ref by ref: missing, other split, mask or sentences."""
    from orchestrator import data, evaluation

    first, second = named_shards(a), named_shards(b)
    scored = (*evaluation.read_evaluation(run), evaluation.read_rows(run)) if run else None
    found = data.diff_shards(first, second)
    for text in data.diff_lines(found):
        echo(text)
    if scored and run:
        found["run"] = data.score_effect(found, scored[0], scored[2], str(run))
        for text in data.effect_lines(found["run"]):
            echo(text)
    if as_json:
        echo(json.dumps(found))


@data_app.command("audit")
def audit(
    uris: Annotated[list[str], typer.Argument(metavar="URI...", help=SHARDS)],
    train_split: Annotated[str, typer.Option(help="Name of the training split.")] = "train",
    bits: Annotated[
        int | None,
        typer.Option(help="Of 256 bits of a hash: in how many two copies may differ; default: 32."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Find pictures of evaluation splits in training, by image_id and by what they show."""
    from orchestrator import data

    stores = [named_shards(uri) for uri in uris]
    most = data.MOST_BITS if bits is None else bits
    found = data.audit_shards(stores, train_split, most)
    for text in data.audit_lines(found):
        echo(text)
    if as_json:
        echo(json.dumps(found))
