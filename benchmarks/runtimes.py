"""Ways to run a detector on a CPU, beside eager PyTorch: our options, onnxruntime and OpenVINO.

Each way runs in a process of its own, since onnxruntime's spinning threads slow down whatever runs
beside them, and the ways take turns. Timed is what a Predictor does with an image that is resized
already: boxes in the picture, masks in their boxes.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.layers import ShapeSpec
from torch import nn

from resnest_d2 import Predictor, model_zoo
from resnest_d2.export import export_model, load_exported
from resnest_d2.inference.masks import detect
from resnest_d2.modeling.build import build_resnest_backbone
from resnest_d2.optimize import optimize_for_inference

from .detectors import make_detector
from .peers import config
from .timing import Found, Section, summarize, table, time_call

EAGER = "eager"
BACKBONE = "backbone"  # of ResNeSt-50, in place of a detector's name
BF16 = torch.bfloat16
SERIES = 2
# Options of optimize_for_inference; and of load_exported.
OURS: dict[str, dict[str, Any]] = {
    "optimised": {},
    "compiled": {"compile": True},
    "bf16": {"dtype": BF16},
    "bf16 compiled": {"compile": True, "dtype": BF16},
}
EXPORTED: dict[str, dict[str, Any]] = {
    "onnxruntime": {"runtime": "onnxruntime"},
    "OpenVINO f32": {"runtime": "openvino"},
    "OpenVINO bf16": {"runtime": "openvino", "half": True},
}
ALONE = "OpenVINO f32, the graph alone"
WAYS = (EAGER, *OURS, *EXPORTED, ALONE)


def make_image(name: str, height: int, width: int) -> torch.Tensor:
    """The image that is timed, shape (3, H, W), or (1, 3, H, W) for the backbone."""
    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0)) * 255
    return image[None] if name == BACKBONE else image


def make_model(name: str, height: int, width: int) -> tuple[nn.Module, Any]:
    """A detector or the backbone, the same in every process, and what it is called with."""
    torch.manual_seed(0)
    image = make_image(name, height, width)
    if name == BACKBONE:
        return build_resnest_backbone(config(50), ShapeSpec(channels=3)).eval(), image
    inputs = [{"image": image, "height": height, "width": width}]
    return make_detector(name, "cpu", inputs), inputs


def export(name: str, height: int, width: int, file: Path) -> None:
    """Write a model's ONNX file."""
    model, inputs = make_model(name, height, width)
    if name == BACKBONE:
        names = list(model.output_shape())
        torch.onnx.export(optimize_for_inference(model), (inputs,), file, output_names=names)
    else:
        resize = T.ResizeShortestEdge([min(height, width)] * 2, max(height, width))
        export_model(Predictor(model, augmentation=resize), file)


def open_way(way: str, name: str, height: int, width: int, file: Path) -> Callable[[], Any]:
    """Make what is timed: a call on one image."""
    image = make_image(name, height, width)
    if way == ALONE or (way in EXPORTED and name == BACKBONE):
        return open_alone(way, file, image.numpy())
    if way in EXPORTED:
        exported = load_exported(file, **EXPORTED[way])
        return lambda: detect(exported, [{"image": image, "height": height, "width": width}])
    model, inputs = make_model(name, height, width)
    if way in OURS:
        model = optimize_for_inference(model, **OURS[way])
    return lambda: model(inputs) if name == BACKBONE else detect(model, inputs)


def open_alone(way: str, file: Path, image: np.ndarray) -> Callable[[], Any]:
    """A runtime's own call on a file, as its documentation shows it."""
    if way == "onnxruntime":
        import onnxruntime

        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        inputs = {session.get_inputs()[0].name: image}
        return lambda: session.run(None, inputs)
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "bf16" if "bf16" in way else "f32"}
    compiled = core.compile_model(core.read_model(file), "CPU", settings)
    return lambda: compiled([image], share_inputs=True)


@torch.no_grad()
def time_way(way: str, name: str, height: int, width: int, file: str, rounds: int) -> Found:
    """Seconds to load, with the first call, and of each later call; in this process."""
    start = time.perf_counter()
    run = open_way(way, name, height, width, Path(file))
    run()
    loaded = time.perf_counter() - start
    run()
    return {"load": loaded, "seconds": [time_call(run) for _ in range(rounds)]}


def measure_runtimes(args: argparse.Namespace) -> Found:
    """Time every way of ``--ways`` on every model of ``--models``, in two series by turns.

    Returns:
        by model: "times" and the seconds to "load" by way, the first of which is the "baseline",
        and "size".
    """
    found: Found = {}
    for name in args.models:
        size = (args.height, args.width)
        with TemporaryDirectory() as folder:
            file = Path(folder, "model.onnx")
            export(name, *size, file)
            series = [
                {way: _in_a_process(way, name, size, file, args.rounds) for way in args.ways}
                for _ in range(SERIES)
            ]
        seconds = {way: [t for one in series for t in one[way]["seconds"]] for way in args.ways}
        load = {way: min(one[way]["load"] for one in series) for way in args.ways}
        found[name] = {"baseline": args.ways[0], "load": load, "size": size}
        found[name]["times"] = summarize(seconds, args.ways[0])
    return found


def _in_a_process(way: str, name: str, size: tuple[int, int], file: Path, rounds: int) -> Found:
    call = [way, name, *map(str, size), str(file), str(rounds)]
    command = [sys.executable, "-m", "benchmarks.runtimes", *call]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def render(found: Found) -> list[str]:
    """A table for each model, with seconds to load."""
    lines: list[str] = []
    for name, one in found.items():
        height, width = one["size"]
        lines += [
            "",
            *table(f"{name}, {height}x{width}, one image", one["times"], one["baseline"]),
            "",
        ]
        loads = ", ".join(f"{way} {seconds:.1f}" for way, seconds in one["load"].items())
        lines.append(f"Seconds to load, with the first image: {loads}.")
    return lines[1:]


SECTION = Section(
    measure_runtimes,
    render,
    {
        "--models": {
            "nargs": "+",
            "choices": [BACKBONE, *model_zoo.names()],
            "default": [BACKBONE, "mask_resnest50"],
            "metavar": "NAME",
            "help": f"{BACKBONE} (of ResNeSt-50), or of the zoo",
        },
        "--ways": {"nargs": "+", "choices": WAYS, "default": WAYS, "help": "what is timed"},
    },
)

if __name__ == "__main__":
    way, name, height, width, file, rounds = sys.argv[1:]
    print(json.dumps(time_way(way, name, int(height), int(width), file, int(rounds))))
