"""Training steps of backbones, and the memory that they take."""

import argparse
from collections.abc import Callable, Iterable

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import build_resnet_backbone
from torch import nn

from resnest_d2.modeling.build import build_resnest_backbone

from .peers import REFERENCE, config, reference_backbone
from .timing import Report, Times, as_json, measure, table

OURS, CHECKPOINTED, COMPILED = "resnest_d2", "resnest_d2, GRAD_CHECKPOINT", "resnest_d2, compiled"
MEMORY_DEPTHS = (50, 101, 200, 269)
# What detectors are trained at (INPUT.MIN_SIZE_TRAIN 800, at most 1333), padded to 32; and two
# images a GPU, as in the published recipes (16 on 8 GPUs).
MEMORY_SIZE, MEMORY_BATCH = (800, 1344), 2
MIB = 1 << 20


def training_backbone(depth: int, checkpoint: bool = False) -> nn.Module:
    """In training, stem and res2 frozen (``FREEZE_AT`` 2), on the default device."""
    cfg = config(depth)
    cfg.MODEL.RESNETS.GRAD_CHECKPOINT = checkpoint
    return build_resnest_backbone(cfg, ShapeSpec(channels=3)).train()


def make_step(model: nn.Module, image: torch.Tensor, amp: bool = False) -> Callable[[], None]:
    """Forward, a loss, backward; gradients are dropped, as an optimizer is not what is compared."""

    def step() -> None:
        with torch.autocast(image.device.type, torch.bfloat16, enabled=amp):
            features = model(image)
        sum(feature.float().mean() for feature in features.values()).backward()
        model.zero_grad(set_to_none=True)

    return step


def saved_bytes(model: nn.Module, image: torch.Tensor) -> int:
    """Bytes that a forward pass keeps for backward, parameters left out; also on "meta"."""
    kept: list[torch.Tensor] = []  # alive, so that no two storages have one address
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        features = model(image)
    own = _storages([*model.parameters(), *model.buffers()])
    found = _storages(kept)
    del features
    return sum(size for address, size in found.items() if address not in own)


def _storages(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    storages = [tensor.untyped_storage() for tensor in tensors]
    return {storage._cdata: storage.nbytes() for storage in storages}


def peak_bytes(step: Callable[[], None]) -> int:
    """Of a step on a GPU, over what was allocated before it."""
    step()  # cuDNN chooses
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def step_bytes(model: nn.Module, image: torch.Tensor) -> int:
    """What a step takes: on a GPU its peak, elsewhere what is kept for backward."""
    return peak_bytes(make_step(model, image)) if image.is_cuda else saved_bytes(model, image)


def measure_steps(
    depth: int,
    batch: int,
    size: tuple[int, int],
    rounds: int,
    device: str,
    compiled: bool = False,
    amp: bool = False,
) -> tuple[dict[str, Times], dict[str, int]]:
    """Time training steps in turn, and count what they keep for backward.

    Args:
        depth: of the backbones.
        batch: images.
        size: their height and width.
        rounds: how often.
        device: "cpu" or "cuda".
        compiled: measure ``MODEL.COMPILE`` too.
        amp: under bf16 autocast.

    Returns:
        times and bytes saved, by competitor.
    """
    image = torch.rand(batch, 3, *size, device=device)
    models = {
        REFERENCE: reference_backbone(depth).train(),
        f"Detectron2's ResNet-{depth}": build_resnet_backbone(
            config(depth), ShapeSpec(channels=3)
        ).train(),
        OURS: training_backbone(depth),
        CHECKPOINTED: training_backbone(depth, checkpoint=True),
    }
    models = {name: model.to(device) for name, model in models.items()}
    models[REFERENCE].load_state_dict(models[OURS].state_dict())
    saved = {name: saved_bytes(model, image) for name, model in models.items()}
    if compiled:
        models[COMPILED] = training_backbone(depth).to(device)
        models[COMPILED].compile()  # as MODEL.COMPILE does
    runs = {name: make_step(model, image, amp) for name, model in models.items()}
    return measure(runs, rounds, warmup=2, device=device), saved


def measure_memory(device: str) -> dict[str, dict[str, int]]:
    """Bytes by depth, with and without checkpoints, at :data:`MEMORY_SIZE`.

    On a GPU the peak of a step; on "cpu" what is kept for backward, counted on shapes alone.
    """
    place = "meta" if device == "cpu" else device
    found: dict[str, dict[str, int]] = {}
    for depth in MEMORY_DEPTHS:
        found[str(depth)] = {}
        for checkpoint in (False, True):
            model = training_backbone(depth, checkpoint).to(place)
            image = torch.empty(MEMORY_BATCH, 3, *MEMORY_SIZE, device=place)
            key = CHECKPOINTED if checkpoint else OURS
            found[str(depth)][key] = step_bytes(model, image)
    return found


def run_steps(args: argparse.Namespace) -> Report:
    """The section "training" of ``python -m benchmarks``."""
    batch, size = args.batch, (args.train_size, args.train_size)
    times, saved = measure_steps(
        args.depth, batch, size, args.rounds, args.device, args.compile, args.amp
    )
    kind = "bf16 autocast" if args.amp else "fp32"
    title = f"Training step, depth {args.depth}, {batch}x3x{size[0]}x{size[1]}, FREEZE_AT 2, {kind}"
    lines = table(title, times, REFERENCE)
    lines.append("")
    for name, size in saved.items():
        lines.append(
            f"- {name}: {size / MIB:.0f} MiB kept for backward, {size / saved[OURS]:.3f} of ours"
        )
    middle, low, high = times[CHECKPOINTED].ratio_to(times[OURS])
    lines.append(
        f"- checkpoints take {1 / middle:.2f} times the time (quartiles {1 / high:.2f} to "
        f"{1 / low:.2f})"
    )
    if args.compile:
        middle, low, high = times[COMPILED].ratio_to(times[OURS])
        lines.append(f"- compiled: {middle:.2f} times as fast ({low:.2f} to {high:.2f})")
    return lines, {"times": as_json(times, REFERENCE), "saved": saved}


def run_memory(args: argparse.Namespace) -> Report:
    """The section "memory" of ``python -m benchmarks``."""
    found = measure_memory(args.device)
    what = "kept for backward" if args.device == "cpu" else "at the peak of a step"
    shape = f"{MEMORY_BATCH}x3x{MEMORY_SIZE[0]}x{MEMORY_SIZE[1]}"
    lines = [f"## Backbone, {shape}, FREEZE_AT 2, fp32: MiB {what}", ""]
    lines += ["| depth | without | with GRAD_CHECKPOINT | ratio |", "|---:|---:|---:|---:|"]
    for depth, sizes in found.items():
        plain, less = sizes[OURS], sizes[CHECKPOINTED]
        lines.append(f"| {depth} | {plain / MIB:.0f} | {less / MIB:.0f} | {less / plain:.3f} |")
    return lines, found
