"""Non-maximum suppression at inference that begins with the best boxes, and may end with them."""

import torch
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers, fast_rcnn_inference
from detectron2.structures import Instances

from .replace import Replacement, in_graph

# Boxes of a class that come first, at least and for each detection. Below 1,000 torchvision moves
# classes apart by adding to coordinates, which rounds them.
FIRST, FIRST_PER_DETECTION = 2000, 20


class BestFirstOutputLayers(Replacement, FastRCNNOutputLayers):
    """Detectron2's layer, which looks at the best boxes alone where they are enough.

    Whether a box is kept depends on better ones only. Once there are as many detections as an image
    may have, all others are worse: with a low threshold on scores and many classes these are the
    most, and their suppression takes a tenth of a detector's time.
    """

    kind = FastRCNNOutputLayers

    def inference(
        self, predictions: tuple[torch.Tensor, torch.Tensor], proposals: list[Instances]
    ) -> tuple[list[Instances], list[torch.Tensor]]:
        """Detections of each image, and the rows of the proposals that they come from."""
        if in_graph():
            return super().inference(predictions, proposals)
        scores = self.predict_probs(predictions, proposals)
        given = (self.predict_boxes(predictions, proposals), scores)
        given += ([proposal.image_size for proposal in proposals],)
        most = self.test_topk_per_image
        limits = (self.test_nms_thresh, most)
        first = max(FIRST, FIRST_PER_DETECTION * most)
        if most >= 0 and all(one[:, :-1].numel() > first for one in scores):
            least = min(one[:, :-1].flatten().topk(first).values[-1].item() for one in scores)
            if least > self.test_score_thresh:
                found, rows = fast_rcnn_inference(*given, least, *limits)
                if all(len(one) == most for one in found):
                    return found, rows
        return fast_rcnn_inference(*given, self.test_score_thresh, *limits)
