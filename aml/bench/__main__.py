"""Measure a training step, evaluation, or several workers.

A step:         python -m aml.bench step --model caris --backbone swin_base --image-size 448
Evaluation:     python -m aml.bench eval --model clipseg --image-size 352 --batch 32
More workers:   python -m aml.bench workers --workers 2 --image-size 64 --batch 16

The ways that are compared are timed in turn in one process, so that a ratio compares like with
like;
the last line printed is JSON.
"""

import argparse
import json

import torch

from aml.bench.step import compare, plain


def main(arguments=None) -> None:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--model", default="small")
    common.add_argument("--backbone", help="the model option of that name, as swin_base")
    common.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a model option, as width=64",
    )
    common.add_argument("--image-size", type=int, default=112)
    common.add_argument("--batch", type=int, default=32)
    common.add_argument("--precision", default="fp32")
    common.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    common.add_argument("--rounds", type=int, default=7)
    common.add_argument("--threads", type=int, default=None)
    parser = argparse.ArgumentParser(prog="python -m aml.bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser(
        "step",
        parents=[common],
        help="time, FLOPs and memory of a training step, each arm as a ratio to off",
    )
    evaluation = commands.add_parser(
        "eval",
        parents=[common],
        help="a picture encoded once for its sentences against once for each",
    )
    evaluation.add_argument(
        "--sentences", type=int, default=7, help="of a picture; RefCOCO has seven"
    )
    sharing = commands.add_parser(
        "workers",
        parents=[common],
        help="a step shared by workers against one alone, and the share of communication",
    )
    sharing.add_argument("--workers", type=int, default=2)
    given = parser.parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    options = {k: plain(v) for k, v in (o.split("=", 1) for o in given.option)}
    if given.backbone:
        options["backbone"] = given.backbone
    spec = {"name": given.model, **options}
    how = {
        "batch": given.batch,
        "size": given.image_size,
        "precision": given.precision,
        "device": given.device,
        "rounds": given.rounds,
    }
    if given.command == "eval":
        from aml.bench import evaluation as evaluation_module

        found = evaluation_module.measure(spec, sentences=given.sentences, **how)
        print("\n".join(evaluation_module.lines(found)))
    elif given.command == "workers":
        from aml.bench import workers

        found = workers.measure(spec, workers=given.workers, **how)
        print("\n".join(workers.lines(found)))
    else:
        found = compare(spec, **how)
        for arm, row in found["arms"].items():
            print(
                f"{arm:16} {row['ms']:9.2f} ms  x{row['time_to_off']:.3f} time"
                + (f"  x{row['flops_to_off']:.3f} FLOPs" if "flops_to_off" in row else "")
                + (f"  x{row['memory_to_off']:.3f} memory" if "memory_to_off" in row else "")
            )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
