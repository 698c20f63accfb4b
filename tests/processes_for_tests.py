"""What processes that are started by tests do; they import this module."""

import json
import os
import signal
from pathlib import Path

import detectron2.utils.comm as comm
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.evaluation import inference_on_dataset
from detectron2.structures import Boxes, Instances
from helpers import image_shape, make_cfg, randomize
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from resnest_d2 import build_resnest_fpn_backbone
from resnest_d2.config import InputError
from resnest_d2.engine import build_evaluator
from resnest_d2.engine.launch import once
from resnest_d2.engine.trainer import prepare_to_train


def know(folder: str) -> None:
    """Write what this process knows of the group, its threads, and what only one of them does."""
    total = torch.tensor([comm.get_rank() + 1.0])
    torch.distributed.all_reduce(total)
    known = [comm.get_rank(), comm.get_world_size(), comm.get_local_rank(), int(total)]

    def read() -> str:
        Path(folder, "work").open("x").close()
        return f"read by {comm.get_rank()}"

    def fail() -> None:
        raise InputError(f"of {comm.get_rank()}")

    text = once(read)
    try:
        once(fail)
    except InputError as error:
        text += f", {error}"
    known += [torch.get_num_threads(), text]
    Path(folder, str(comm.get_rank())).write_text(json.dumps(known))


def fail(rank: int) -> None:
    """Kill one of the processes; the others wait for it."""
    if comm.get_rank() == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    comm.synchronize()


def take_steps(folder: str, shares: dict[str, list[list[int]]]) -> None:
    """Save what each step leaves behind on this process's share of the images."""
    rank, world = comm.get_rank(), comm.get_world_size()
    for kind, numbers in shares.items():
        torch.save(backbone_step(numbers), Path(folder, f"{kind}-{world}-{rank}.pth"))


def backbone_step(shares: list[list[int]]) -> dict[str, torch.Tensor]:
    """Outputs, gradients and statistics of a step of ResNeSt-FPN with SyncBN."""
    cfg = make_cfg("MODEL.RESNETS.DEPTH", 14, "MODEL.RESNETS.NORM", "SyncBN")
    cfg.merge_from_list(["MODEL.BACKBONE.FREEZE_AT", 0, "MODEL.FPN.NORM", "SyncBN"])
    cfg.merge_from_list(["MODEL.RESNETS.RES2_OUT_CHANNELS", 64])
    model = build_resnest_fpn_backbone(cfg, image_shape())
    randomize(model)
    model = prepare_to_train(cfg, model).train().double()
    images = torch.randn(3, 3, 64, 96, generator=torch.Generator().manual_seed(1)).double()
    world = comm.get_world_size()
    call = model
    if world > 1:
        call = DistributedDataParallel(model, broadcast_buffers=False, device_ids=None)
    outputs = call(images[shares[comm.get_rank()]])
    loss = sum((v * v.detach().cos()).mean(dim=(1, 2, 3)).sum() for v in outputs.values())
    (loss * world).backward()  # which averages the gradients
    found = {f"output {k}": v.detach() for k, v in outputs.items()}
    found |= {f"grad {k}": p.grad for k, p in model.named_parameters() if p.requires_grad}
    return found | {k: v for k, v in model.named_buffers() if "running" in k}


class Replay(nn.Module):
    """A model that returns the objects of an annotation file, moved a little, by image."""

    def __init__(self, content: dict) -> None:
        super().__init__()
        self.content = content

    def forward(self, inputs):
        (image,) = inputs
        generator = torch.Generator().manual_seed(image["image_id"])
        objects = [a for a in self.content["annotations"] if a["image_id"] == image["image_id"]]
        boxes = torch.tensor([a["bbox"] for a in objects], dtype=torch.float)
        boxes = boxes + torch.randn(boxes.shape, generator=generator) * 2
        instances = Instances((image["height"], image["width"]))
        instances.pred_boxes = Boxes(torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1))
        instances.scores = torch.rand(len(boxes), generator=generator).round(decimals=1)  # ties
        instances.pred_classes = torch.tensor([a["category_id"] for a in objects])
        return [{"instances": instances}]


def evaluate(folder: str) -> None:
    """Evaluate those, and write the metrics."""
    DatasetCatalog.get("digits_val")  # which completes the metadata
    metadata = MetadataCatalog.get("digits_val")
    content = json.loads(Path(metadata.json_file).read_text())
    mapping = metadata.thing_dataset_id_to_contiguous_id
    for annotation in content["annotations"]:
        annotation["category_id"] = mapping[annotation["category_id"]]
    loader = build_detection_test_loader(
        content["images"], mapper=lambda image: {**image, "image_id": image["id"]}
    )
    evaluator = build_evaluator("digits_val", folder)
    results = inference_on_dataset(Replay(content), loader, evaluator)
    if comm.is_main_process():
        Path(folder, "metrics.json").write_text(json.dumps(results["bbox"]))


def train(folder: str) -> None:
    """Train a few iterations, and note weights, images and Detectron2's gathers of this process."""
    from short_training import make

    trainer = make(folder, keys={"SOLVER.MAX_ITER": "6", "SOLVER.CHECKPOINT_PERIOD": "6"})
    gathers, files, gather, all_gather = [], [], comm.gather, comm.all_gather
    comm.gather = lambda *args, **options: gathers.append("one") or gather(*args, **options)
    comm.all_gather = lambda *args, **options: gathers.append("all") or all_gather(*args, **options)

    def look(model, inputs):
        files.extend(image["file_name"] for image in inputs[0])

    trainer.model.module.register_forward_pre_hook(look)
    trainer.train()
    weights = sum(p.double().sum().item() for p in trainer.model.parameters())
    note = {"weights": weights, "files": files, "gathers": gathers}
    Path(folder, f"note-{comm.get_rank()}.json").write_text(json.dumps(note))
