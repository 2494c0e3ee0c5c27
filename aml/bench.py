"""What a step costs: python -m aml.bench step --model caris --backbone swin_base --image-size 448 --batch 16 --precision bf16
What evaluation gains by encoding a picture once for its sentences: python -m aml.bench eval --model clipseg --image-size 352 --batch 32
What more workers gain, and what their talking costs: python -m aml.bench workers --workers 2 --image-size 64 --batch 16

What is compared is timed in turn in one process, so that a ratio compares like with like; JSON on the last line.
"""

import argparse
import inspect
import json
import platform
import statistics
import time

import torch
from torch.utils import flop_counter

from aml.data import Batch
from aml.errors import UserError
from aml.learner import PRECISIONS, Learner, TrainConfig, TrainSums
from aml.masking import Masker, MaskingConfig, preset
from aml.models import build
from aml.optim import OptimConfig, losses

ARMS = {
    "off": lambda: preset(mode="off"),
    "random": lambda: preset(mode="random"),
    "two_pass": lambda: preset(mode="two_pass"),
    "maskris": lambda: preset(mode="maskris"),
    "aml/calibrated": preset,
    "aml/paper": lambda: preset("paper"),
    "aml/release": lambda: preset("release"),
}
PEAK_SIDE = 4096
VOCABULARY = [f"word{i}" for i in range(1000)]


def noise_batch(model, batch: int, size: int, device="cpu") -> Batch:
    """A batch of noise with sentences of five words, as large as a real one."""
    generator = torch.Generator().manual_seed(0)
    tokens, token_mask = model.tokenise([" ".join(VOCABULARY[i : i + 5]) for i in range(batch)])
    ids = torch.arange(batch)
    return Batch(
        image=torch.randint(0, 256, (batch, 3, size, size), generator=generator, dtype=torch.uint8),
        tokens=tokens,
        token_mask=token_mask,
        mask=torch.rand(batch, size, size, generator=generator) < 0.05,
        real=torch.tensor([[0, 0, size, size]]).expand(batch, 4),
        size=torch.full((batch, 2), size),
        valid=torch.ones(batch, dtype=torch.bool),
        no_target=torch.zeros(batch, dtype=torch.bool),
        item=ids,
        image_id=ids,
        ref_id=ids,
        sent_id=ids,
        dataset=torch.zeros_like(ids),
        index=ids,
        total=batch,
    ).to(device)


def make(masking: MaskingConfig, spec: dict, *, batch: int, size: int, precision: str = "fp32", device="cpu", wrap=None) -> tuple[Learner, Batch]:
    """A learner of these settings and a batch for it.   wrap: as Learner takes it"""
    torch.manual_seed(0)
    spec = dict(spec)
    model = build(spec.pop("name"), vocabulary=VOCABULARY, **spec)
    masker = Masker(masking, model=model, image_size=size)
    learner = Learner(model, masker, optim=OptimConfig(), train=TrainConfig(batch=batch, precision=precision), steps=1000, device=device, wrap=wrap)
    return learner, noise_batch(model, batch, size, device)


def step_flops(learner: Learner, batch: Batch) -> int:
    """FLOPs of one training step, stage 1 included (torch's counter: matrix products, convolutions, attention)."""
    learner.model.train()
    dispatch = inspect.unwrap(flop_counter._FlopCounterMode.__torch_dispatch__)
    dispatch.__dynamo_disable = dispatch  # or torch's compiler is imported to be kept out of it, 4 s of the process
    with flop_counter.FlopCounterMode(display=False) as counter:
        learner.step(batch, learner.masker.config.warmup_epochs, 0, TrainSums(learner.device))
    return counter.get_total_flops()


def peak_flops(device: str, precision: str) -> float:
    """FLOPs a second of a large matrix product at this precision: what this device reaches at best, measured and not promised."""
    dtype = PRECISIONS[precision] or torch.float32
    side = PEAK_SIDE if device.startswith("cuda") else PEAK_SIDE // 4
    a = torch.randn(side, side, device=device, dtype=dtype)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        wait(torch.device(device))
        times.append(time.perf_counter() - start)
    return 2 * side**3 / min(times)


def peak_memory_mb(learner: Learner, batch: Batch) -> float | None:
    """Most memory allocated on the device during one step, MiB; None on a CPU, whose allocator keeps no such count."""
    if learner.device.type != "cuda":
        return None
    timed(learner, batch, 0)  # what is made once stays: the optimiser's state, and the workspace of the first product of all
    torch.cuda.reset_peak_memory_stats(learner.device)
    before = torch.cuda.memory_allocated(learner.device)
    timed(learner, batch, 0)
    return (torch.cuda.max_memory_allocated(learner.device) - before + _held(learner)) / 2**20


def _held(learner: Learner) -> int:
    """Bytes of the learner's own parameters and optimiser state: other learners stand beside it on the device."""
    state = [t for s in learner.optimizer.state.values() for t in s.values() if torch.is_tensor(t)]
    return sum(t.numel() * t.element_size() for t in [*learner.model.parameters(), *learner.model.buffers(), *state])


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(learner: Learner, batch: Batch, index: int) -> float:
    """Seconds of one step, the device waited for."""
    sums, start = TrainSums(learner.device), time.perf_counter()
    learner.step(batch, learner.masker.config.warmup_epochs, index, sums)
    wait(learner.device)
    return time.perf_counter() - start


def bare_step(learner: Learner, batch: Batch, optimizer) -> float:
    """Seconds of forward, loss, backward, clip and step written out, without the learner."""
    start = time.perf_counter()
    with learner.autocast():
        logits = learner.model(learner.model.normalise(batch.image), batch.tokens, batch.token_mask)
    losses(logits.float(), batch.mask, "ce").mean().backward()
    torch.nn.utils.clip_grad_norm_(learner.model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    wait(learner.device)
    return time.perf_counter() - start


def compare(spec: dict, *, batch: int, size: int, precision: str, device: str, rounds: int) -> dict:
    """Every arm in turn, `rounds` times: median ms, its quartiles, samples/s, FLOPs, memory, and ratios to off paired round by round."""
    learners = {}
    for arm, config in ARMS.items():
        try:
            learners[arm] = make(config(), spec, batch=batch, size=size, precision=precision, device=device)
        except UserError as error:  # a preset may ask for what this model or size does not have
            print(f"{arm:16} left out: {error}")
    memory = {arm: peak_memory_mb(*pair) for arm, pair in learners.items()}
    flops = {arm: step_flops(*pair) for arm, pair in learners.items()}
    bare, bare_batch = make(ARMS["off"](), spec, batch=batch, size=size, precision=precision, device=device)
    optimizer = torch.optim.AdamW([p for p in bare.model.parameters() if p.requires_grad], fused=True)
    best = peak_flops(device, precision)
    times: dict[str, list[float]] = {arm: [] for arm in [*learners, "bare loop"]}
    for index in range(rounds + 2):
        for arm, (learner, noise) in learners.items():
            times[arm].append(timed(learner, noise, index))
        times["bare loop"].append(bare_step(bare, bare_batch, optimizer))
    times = {arm: t[2:] for arm, t in times.items()}  # the first two warm caches up
    rows = {}
    for arm, t in times.items():
        ratio = [a / b for a, b in zip(t, times["off"], strict=True)]
        rows[arm] = {
            **({"memory_mb": round(memory[arm], 1), "memory_to_off": round(memory[arm] / memory["off"], 4)} if memory.get(arm) else {}),
            "ms": round(1e3 * statistics.median(t), 2),
            "ms_quartiles": [round(1e3 * q, 2) for q in statistics.quantiles(t, n=4)[::2]],
            "samples_per_s": round(batch / statistics.median(t), 1),
            "time_to_off": round(statistics.median(ratio), 4),
            "time_to_off_quartiles": [round(q, 4) for q in statistics.quantiles(ratio, n=4)[::2]],
            **(
                {
                    "gflops": round(flops[arm] / 1e9, 3),
                    "flops_to_off": round(flops[arm] / flops["off"], 4),
                    "share_of_peak": round(flops[arm] / statistics.median(t) / best, 4),
                }
                if arm in flops
                else {}
            ),
        }
    return {
        "model": spec,
        "batch": batch,
        "image_size": size,
        "precision": precision,
        "device": device,
        "device_name": torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.processor() or platform.machine(),
        "peak_tflops": round(best / 1e12, 3),
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "arms": rows,
    }


def step_seconds(experiment, steps: int = 3) -> tuple[int, float]:
    """Samples and seconds of one step of an experiment's sizes on one worker of this machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, int(experiment.resources.cpus_per_worker)))
    batch = experiment.train.batch // experiment.resources.workers
    device = "cuda" if experiment.resources.gpus_per_worker and torch.cuda.is_available() else "cpu"
    learner, noise = make(
        experiment.aml, experiment.model, batch=batch, size=experiment.data.size, precision=experiment.train.precision, device=device
    )
    seconds = statistics.median([timed(learner, noise, i) for i in range(steps + 1)][1:])
    torch.set_num_threads(before)
    return batch, seconds


def plain(text: str):
    """A number, true, false, null or a list as JSON has it; anything else is text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def main(arguments=None) -> None:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--model", default="small")
    common.add_argument("--backbone", help="the model option of that name, as swin_base")
    common.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="a model option, as width=64")
    common.add_argument("--image-size", type=int, default=112)
    common.add_argument("--batch", type=int, default=32)
    common.add_argument("--precision", default="fp32")
    common.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    common.add_argument("--rounds", type=int, default=7)
    common.add_argument("--threads", type=int, default=None)
    parser = argparse.ArgumentParser(prog="python -m aml.bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("step", parents=[common], help="time, FLOPs and memory of a training step, each arm as a ratio to off")
    evaluation = commands.add_parser("eval", parents=[common], help="a picture encoded once for its sentences against once for each")
    evaluation.add_argument("--sentences", type=int, default=7, help="of a picture; RefCOCO has seven")
    sharing = commands.add_parser("workers", parents=[common], help="a step shared by workers against one alone, and the share of communication")
    sharing.add_argument("--workers", type=int, default=2)
    given = parser.parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    options = {k: plain(v) for k, v in (o.split("=", 1) for o in given.option)}
    if given.backbone:
        options["backbone"] = given.backbone
    spec = {"name": given.model, **options}
    how = {"batch": given.batch, "size": given.image_size, "precision": given.precision, "device": given.device, "rounds": given.rounds}
    if given.command == "eval":
        from aml import bench_eval

        found = bench_eval.measure(spec, sentences=given.sentences, **how)
        print("\n".join(bench_eval.lines(found)))
    elif given.command == "workers":
        from aml import bench_workers

        found = bench_workers.measure(spec, workers=given.workers, **how)
        print("\n".join(bench_workers.lines(found)))
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
