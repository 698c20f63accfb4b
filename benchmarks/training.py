"""Training steps of backbones, and the memory that they take."""

import argparse
from collections.abc import Callable

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import build_resnet_backbone
from torch import nn

from resnest_d2.modeling.build import build_resnest_backbone

from .peers import REFERENCE, config, reference_backbone
from .timing import Found, Section, measure, speedup, summarize, table

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
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        features = model(image)
    # A storage that tensors share is one object; on "meta" none has an address.
    found = {id(x.untyped_storage()): x.untyped_storage() for x in kept}
    for tensor in (*model.parameters(), *model.buffers()):
        found.pop(id(tensor.untyped_storage()), None)
    del features
    return sum(storage.nbytes() for storage in found.values())


def step_bytes(model: nn.Module, image: torch.Tensor) -> int:
    """What a step takes: on a GPU its peak over what was there, else what is kept for backward."""
    if not image.is_cuda:
        return saved_bytes(model, image)
    step = make_step(model, image)
    step()  # cuDNN chooses
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure_steps(args: argparse.Namespace) -> Found:
    """Time training steps in turn."""
    depth, size = args.depth, args.train_size
    image = torch.rand(args.batch, 3, size, size, device=args.device)
    models = {
        REFERENCE: reference_backbone(depth),
        f"Detectron2's ResNet-{depth}": build_resnet_backbone(config(depth), ShapeSpec(channels=3)),
        OURS: training_backbone(depth),
        CHECKPOINTED: training_backbone(depth, checkpoint=True),
    }
    models[REFERENCE].load_state_dict(models[OURS].state_dict())
    models = {name: model.to(args.device).train() for name, model in models.items()}
    if args.compile:
        models[COMPILED] = training_backbone(depth).to(args.device)
        models[COMPILED].compile()  # as MODEL.COMPILE does
    runs = {name: make_step(model, image, args.amp) for name, model in models.items()}
    times = measure(runs, args.rounds, warmup=2, device=args.device)
    case = f"depth {depth}, {args.batch}x3x{size}x{size}, {'bf16 autocast' if args.amp else 'fp32'}"
    return {"case": case, "times": summarize(times, REFERENCE)}


def render_steps(found: Found) -> list[str]:
    """A table beside the reference; checkpoints and compilation beside our own."""
    title = f"Training step of a backbone, {found['case']}, FREEZE_AT 2"
    lines = [*table(title, found["times"], REFERENCE), ""]
    times = {name: one["seconds"] for name, one in found["times"].items()}
    for name in sorted({CHECKPOINTED, COMPILED} & set(times)):
        low, middle, high = speedup(times[name], times[OURS])
        lines.append(f"- {name}: {middle:.2f} times as fast as ours ({low:.2f} to {high:.2f})")
    return lines


def measure_memory(args: argparse.Namespace) -> Found:
    """Bytes by depth, with and without checkpoints, at :data:`MEMORY_SIZE`.

    On a GPU the peak of a step; on "cpu" what is kept for backward, counted on shapes alone.
    """
    place = "meta" if args.device == "cpu" else args.device
    image = torch.empty(MEMORY_BATCH, 3, *MEMORY_SIZE, device=place)
    sizes = {
        str(depth): {
            name: step_bytes(training_backbone(depth, is_checkpointed).to(place), image)
            for name, is_checkpointed in ((OURS, False), (CHECKPOINTED, True))
        }
        for depth in MEMORY_DEPTHS
    }
    what = "kept for backward" if args.device == "cpu" else "at the peak of a step"
    return {"what": what, "bytes": sizes}


def render_memory(found: Found) -> list[str]:
    """A table."""
    shape = f"{MEMORY_BATCH}x3x{MEMORY_SIZE[0]}x{MEMORY_SIZE[1]}"
    lines = [f"## Backbone, {shape}, FREEZE_AT 2, fp32: MiB {found['what']}", ""]
    lines += ["| depth | without | with GRAD_CHECKPOINT | ratio |", "|---:|---:|---:|---:|"]
    for depth, sizes in found["bytes"].items():
        plain, less = sizes[OURS], sizes[CHECKPOINTED]
        lines.append(f"| {depth} | {plain / MIB:.0f} | {less / MIB:.0f} | {less / plain:.3f} |")
    return lines


STEPS = Section(
    measure_steps,
    render_steps,
    {
        "--batch": {"type": int, "default": 2, "help": "images of a training step, 2 or more"},
        "--train-size": {"type": int, "default": 320, "help": "their height and width"},
        "--amp": {"action": "store_true", "help": "training steps in bf16"},
    },
)
MEMORY = Section(measure_memory, render_memory)
