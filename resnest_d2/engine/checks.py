"""What must fit between a model and its training data, whatever kind of config describes them."""

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..config.classes import num_classes
from ..modeling.norm import check_batch_statistics
from ..modeling.resnest import ResNeSt
from ..modeling.split_attention import SplitAttentionConv2d


def check_training(
    model: nn.Module, images_per_process: int, datasets: Sequence[str], key: str
) -> None:
    """See that a model can be trained on data sets that are loaded.

    Args:
        model: the model, in training mode.
        images_per_process: the part of the batch that each process sees.
        datasets: names of the training sets.
        key: of the config, which sets the model's number of classes.

    Raises:
        ValueError: one image a process, where the attention's batch norm needs more; more classes
            in the data than in the model.
    """
    if isinstance(model, DistributedDataParallel):
        model = model.module
    has = num_classes(model)
    for name in datasets:
        needs = len(MetadataCatalog.get(name).get("thing_classes", None) or [])
        if has is not None and needs > has:
            raise ValueError(f"{key} is {has}, but data set {name!r} has {needs} classes")
    for module in model.modules():
        if isinstance(module, SplitAttentionConv2d):
            check_batch_statistics(module.bn1, images_per_process)


def check_grad_checkpoint(cfg: CfgNode, model: nn.Module) -> None:
    """Refuse ``MODEL.RESNETS.GRAD_CHECKPOINT`` where nothing reads it.

    Raises:
        ValueError: the model has no ResNeSt.
    """
    wanted = cfg.MODEL.RESNETS.get("GRAD_CHECKPOINT", False)
    if wanted and not any(isinstance(module, ResNeSt) for module in model.modules()):
        raise ValueError(
            "MODEL.RESNETS.GRAD_CHECKPOINT saves nothing with MODEL.BACKBONE.NAME "
            f"{cfg.MODEL.BACKBONE.NAME!r}: only ResNeSt backbones have it"
        )
