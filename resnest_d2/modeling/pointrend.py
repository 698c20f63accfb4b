"""PointRend on batches of any kind, on top of Detectron2's project of that name."""

import torch
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.projects.point_rend import PointRendMaskHead
from detectron2.structures import Instances


@ROI_MASK_HEAD_REGISTRY.register()
class AnyBatchPointRendMaskHead(PointRendMaskHead):
    """``PointRendMaskHead`` whose losses are zero for a batch without objects.

    Detectron2's ends such a batch in an error: it samples points in no mask at all.
    """

    def forward(
        self, features: dict[str, torch.Tensor], instances: list[Instances]
    ) -> dict[str, torch.Tensor] | list[Instances]:
        """Losses in training, instances with masks otherwise, as in Detectron2's."""
        if not self.training or any(map(len, instances)):
            return super().forward(features, instances)
        # Every parameter takes part, which DistributedDataParallel asks for.
        zero = sum(parameter.sum() for parameter in self.parameters()) * 0
        names = ("loss_mask", "loss_mask_point")[: 1 + self.mask_point_on]
        return dict.fromkeys(names, zero)
