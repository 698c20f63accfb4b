"""Reading exported files and running them as Detectron2 runs its models."""

import importlib.util
import io
import logging
import os
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import torch
import torchvision  # noqa: F401  (its operators are in the graphs)
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances

from .. import __version__
from ..config import FileError, InputError, MissingFileError, import_extra, require_one_of
from .graph import OUTPUTS
from .standalone import pad

logger = logging.getLogger(__name__)

# The JSON of a file's facts: a property of ONNX, with the ending .json an extra file of pt2.
ENTRY = "resnest_d2"
Side = Annotated[int, pydantic.Field(ge=1, le=4096)]
Colour = Annotated[Sequence[pydantic.FiniteFloat], pydantic.Field(min_length=3, max_length=3)]


@pydantic.dataclasses.dataclass(frozen=True, config={"extra": "forbid"})
class Metadata:
    """Facts about an exported model, which its file holds."""

    classes: Sequence[str]
    category_ids: Sequence[int]
    """Ids of the classes in the annotations that the model was trained on, if they are known."""
    input_format: Literal["RGB", "BGR"]
    """The order of the image's colours, as ``INPUT.FORMAT``."""
    pixel_mean: Colour
    """Part of the graph; an image is padded with it."""
    size_divisibility: Side
    """Height and width of the image are multiples of it."""
    min_side: Side
    """The least height and width; in smaller images a level of the pyramid has a single row."""
    min_size: pydantic.NonNegativeInt
    """The shorter side that images are resized to, 0 if they are not."""
    max_size: pydantic.NonNegativeInt
    """The limit of the longer side."""
    score_threshold: pydantic.FiniteFloat
    """The file gives no detection of a lower score."""
    version: str = __version__
    """The version of this package that wrote the file."""

    def to_json(self) -> str:
        """The JSON that a file holds."""
        return pydantic.TypeAdapter(Metadata).dump_json(self).decode()


class UnsupportedError(InputError):
    """A runtime lacks an operator of a model."""


class OnnxRuntime:
    """onnxruntime on the CPU, for ONNX files.

    Args:
        content: of the file.
        name: of the file, for messages.

    Attributes:
        facts: the JSON of :class:`Metadata` that the file holds, None without any.

    Raises:
        InputError: the content is no ONNX model.
        MissingPackageError: onnxruntime is not installed.
    """

    def __init__(self, content: bytes, name: str) -> None:
        onnxruntime = import_extra("onnxruntime", "export", "an ONNX file")
        options = onnxruntime.SessionOptions()
        # Left out, onnxruntime looks for its own format too.
        options.add_session_config_entry("session.load_model_format", "ONNX")
        # A model may keep weights in other files; those of this package do not.
        folder = "session.model_external_initializers_file_folder_path"
        options.add_session_config_entry(folder, os.devnull)
        try:
            self._session = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's own classes share no base below it
            raise InputError(f"{name} cannot be read as an ONNX model: {_short(error)}") from error
        self.facts = self._session.get_modelmeta().custom_metadata_map.get(ENTRY)

    def __call__(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Outputs in the order of :data:`OUTPUTS`, of a padded image (3, H, W)."""
        outputs = self._session.run(None, {"image": image.numpy()})
        return [torch.from_numpy(value) for value in outputs]


class OpenVino:
    """OpenVINO on the CPU, for ONNX files; arguments, attributes and errors as of OnnxRuntime.

    Args:
        half: compute in bfloat16; a warning says if the CPU has no instructions for it.

    Raises:
        UnsupportedError: it lacks an operator, as deformable convolution.
    """

    def __init__(self, content: bytes, name: str, half: bool = False) -> None:
        openvino = import_extra("openvino", "openvino", "OpenVINO")
        onnx = import_extra("onnx", "openvino", "OpenVINO")
        frontends = import_extra("openvino.frontend", "openvino", "OpenVINO")
        try:
            model = onnx.load_model_from_string(content)
            # OpenVINO would look for weights in other files.
            onnx.external_data_helper.load_external_data_for_model(model, os.devnull)
        except Exception as error:  # of protobuf, or onnx's own
            raise InputError(f"{name} cannot be read as an ONNX model: {_short(error)}") from error
        reader = frontends.FrontEndManager().load_by_framework("onnx")
        try:
            converted = reader.convert(reader.load(io.BytesIO(content)))
        except Exception as error:  # OpenVINO's own classes share no base below it
            reason = str(error).partition("Summary:")[2] or str(error)
            raise UnsupportedError(f"OpenVINO cannot run {name}: {_short(reason)}") from error
        self.facts = {entry.key: entry.value for entry in model.metadata_props}.get(ENTRY)
        core = openvino.Core()
        if half and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            logger.warning("This CPU has no instructions for bfloat16: OpenVINO takes float32")
        settings = {"INFERENCE_PRECISION_HINT": "bf16" if half else "f32"}
        settings["PERFORMANCE_HINT"] = "LATENCY"
        self._model = core.compile_model(converted, "CPU", settings)

    def __call__(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Outputs as OnnxRuntime's."""
        outputs = self._model([image.numpy()], share_inputs=True)
        return [torch.from_numpy(value) for value in outputs.to_tuple()]


class TorchRuntime:
    """PyTorch, for files of ``torch.export``; arguments and attributes as of OnnxRuntime.

    Such a file is a program: ``torch.export.load`` loads machine code, unpickles what the file says
    is a pickle, and evaluates the expressions of its shapes. Machine code, pickles that could run
    some, and other additions are refused here; a graph that was made to do harm is not recognised.

    Raises:
        InputError: the content is another archive, or none.
    """

    def __init__(self, content: bytes, name: str) -> None:
        extra = {f"{ENTRY}.json": ""}
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                others = [file for file in archive.namelist() if not _FILES.fullmatch(file)]
            if others:
                raise InputError(f"torch.export.save does not write {others[0]}")
            with _tensors_only():
                program = torch.export.load(io.BytesIO(content), extra_files=extra)
        except Exception as error:  # the first wrong byte or field decides which one it is
            reason = f"{name} cannot be read as a program of PyTorch: {_short(error)}"
            raise InputError(reason) from error
        self.facts = extra[f"{ENTRY}.json"] or None
        self._module = program.module(check_guards=False)

    def __call__(self, image: torch.Tensor) -> Sequence[torch.Tensor]:
        """Outputs as OnnxRuntime's."""
        return self._module(image)


Runtime = OpenVino | OnnxRuntime | TorchRuntime
# By the ending of a file, with the package that each needs, the fastest first.
RUNTIMES: dict[str, dict[str, type[Runtime]]] = {
    ".onnx": {"openvino": OpenVino, "onnxruntime": OnnxRuntime},
    ".pt2": {"torch": TorchRuntime},
}

# What torch.export.save writes of these models.
_FILES = re.compile(
    r"archive/((\.data/)?version|\.data/serialization_id|archive_format|archive_version|byteorder"
    rf"|models/model\.json|data/sample_inputs/model\.pt|extra/{ENTRY}\.json"
    r"|data/(weights|constants)/(model_(weights|constants)_config\.json|(weight|tensor)_\d+))"
)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


@contextmanager
def _tensors_only() -> Iterator[None]:
    """Let PyTorch unpickle tensors and plain values alone, whoever asks it to."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name, "0")
    os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ[name] = before


class ExportedModel:
    """A file's model, called like a model of Detectron2 in evaluation.

    Args:
        runtime: runs the file.
        metadata: what the file says about itself.
    """

    def __init__(self, runtime: Runtime, metadata: Metadata) -> None:
        self.metadata = metadata
        self._runtime = runtime
        self._least = 0.0  # empty rows have the score -1

    def set_score_threshold(self, threshold: float) -> None:
        """Set the least score of a detection.

        Raises:
            InputError: the file itself leaves out detections of that score.
        """
        if not threshold >= self.metadata.score_threshold:  # NaN neither
            raise InputError(
                f"the file holds no detections of scores below {self.metadata.score_threshold:g}, "
                f"so {threshold:g} cannot be asked of it: export the model again with a lower "
                "threshold"
            )
        self._least = max(threshold, 0.0)

    def pad(self, image: torch.Tensor) -> torch.Tensor:
        """Pad an image (3, H, W) to sides that the graph takes."""
        facts = self.metadata
        sides = facts.size_divisibility, facts.min_side
        return torch.from_numpy(pad(image.cpu().numpy(), facts.pixel_mean, *sides))

    @torch.no_grad()
    def run(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Outputs as the file gives them, by name.

        Args:
            image: shape (3, H, W), 0 to 255, in the colours of ``metadata.input_format``.
        """
        return dict(zip(OUTPUTS, self._runtime(self.pad(image)), strict=False))

    def __call__(self, batched_inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Instances]]:
        """Detect.

        Args:
            batched_inputs: one for each image, in Detectron2's format: "image" is resized already,
                as :meth:`run` takes it, and "height" and "width" are those of the result.

        Returns:
            for each image ``{"instances": Instances}``, with boxes, scores, classes and, if the
            model has them, masks of that height and width.
        """
        outputs = []
        for found, one in zip(self.detect(batched_inputs), batched_inputs, strict=True):
            height, width = found.image_size
            size = one.get("height", height), one.get("width", width)
            outputs.append({"instances": detector_postprocess(found, *size)})
        return outputs

    def detect(self, batched_inputs: Sequence[Mapping[str, Any]]) -> list[Instances]:
        """Detect in images as they are given; ``pred_masks`` (N, 1, 28, 28) are in their boxes."""
        return [self._instances(one["image"]) for one in batched_inputs]

    def _instances(self, image: torch.Tensor) -> Instances:
        outputs = self.run(image)
        kept = outputs["scores"] >= self._least
        found = Instances(tuple(image.shape[-2:]))
        found.pred_boxes = Boxes(outputs["boxes"][kept])
        found.scores = outputs["scores"][kept]
        found.pred_classes = outputs["classes"][kept]
        if "masks" in outputs:
            found.pred_masks = outputs["masks"][kept][:, None]
        return found


def load_exported(path: str | Path, runtime: str = "auto", half: bool = False) -> ExportedModel:
    """Open a file of ``resnest-d2 export``; its ending says what can run it.

    Args:
        path: the file.
        runtime: "openvino" or "onnxruntime" for ONNX, "torch" for pt2, or "auto" for the fastest of
            these that is installed.
        half: compute in bfloat16, which OpenVINO can.

    Raises:
        MissingFileError: there is no such file.
        InputError: it is not one of this package's, or is damaged; no such runtime takes it, or not
            in half precision.
        MissingPackageError: the runtime is not installed.
    """
    path = Path(path)
    require_format(path)
    list_runtimes(path.suffix, runtime, half)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise MissingFileError(f"there is no file {path}") from None
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror}") from error
    return open_exported(content, path, runtime, half)


def require_format(path: Path) -> None:
    """See that the ending of a file's name is that of a format.

    Raises:
        InputError: it is not.
    """
    if path.suffix not in RUNTIMES:
        raise InputError(f"an exported file must end in {' or '.join(RUNTIMES)}, got {path}")


def list_runtimes(suffix: str, runtime: str, half: bool) -> list[str]:
    """The runtimes to try for a format, in turn; arguments and errors as of load_exported."""
    known = RUNTIMES[suffix]
    require_one_of("runtime", runtime, ("auto", *known))
    if half and "openvino" not in known:
        raise InputError(f"half precision is for .onnx files, in OpenVINO, not for {suffix}")
    if half and runtime == "onnxruntime":
        raise InputError("onnxruntime has no half precision here: take the runtime openvino")
    if half:
        return ["openvino"]
    if runtime != "auto":
        return [runtime]
    there = [name for name in known if importlib.util.find_spec(name)]
    return there or [list(known)[-1]]  # which says what to install


def open_exported(
    content: bytes, path: Path, runtime: str = "auto", half: bool = False
) -> ExportedModel:
    """Open the content of a file, whose name is ``path``; errors as of :func:`load_exported`."""
    names = list_runtimes(path.suffix, runtime, half)
    options = {"half": True} if half else {}
    for chosen in names:
        try:
            opened = RUNTIMES[path.suffix][chosen](content, str(path), **options)
            break
        except UnsupportedError:
            if chosen == names[-1]:
                raise
    if opened.facts is None:
        raise InputError(f"{path} was not written by `resnest-d2 export`: it holds no metadata")
    try:
        metadata = pydantic.TypeAdapter(Metadata).validate_json(opened.facts)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise InputError(
            f"{path} was written by another version of resnest_d2 than this one, {__version__}, or "
            f"changed since: {field}: {first['msg']}; export it again"
        ) from error
    if runtime == "auto":
        logger.info("%s runs in %s", path, chosen)
    return ExportedModel(opened, metadata)
