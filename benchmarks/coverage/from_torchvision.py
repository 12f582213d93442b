"""torchvision: every builder of `list_models()` but the quantized ones and RAFT.

Quantized models have no parameters to remove, and RAFT's inputs are pairs of frames for a recurrent update that the
library itself does not export. Images are 224x224 (Inception 299, segmentation 128, detection two of 160x192, video 8
frames of 112x112), so that the whole list is affordable; auxiliary heads, which eval mode does not use, are left out.
"""

import functools

import torch
import torchvision.models as tv
from torch import nn

from benchmarks.coverage.samples import Sample
from fxsurgery.inputs import Inputs

HEAVY = ("vit_h_14", "vit_l_16", "vit_l_32", "regnet_y_128gf")
DETECTION, SEGMENTATION, VIDEO, FLOW = (
    frozenset(tv.list_models(module=module)) for module in (tv.detection, tv.segmentation, tv.video, tv.optical_flow)
)


def samples() -> list[Sample]:
    """The list, in alphabetical order."""
    names = [name for name in tv.list_models() if not name.startswith("quantized_") and name not in FLOW]
    return [Sample(name, functools.partial(_build, name), heavy=name in HEAVY) for name in names]


def _build(name: str) -> tuple[nn.Module, Inputs]:
    if name in DETECTION:
        model = tv.get_model(name, weights=None, weights_backbone=None, **_detection_options(name))
        return model, Inputs(([torch.rand(3, 160, 192), torch.rand(3, 176, 160)],))
    if name in SEGMENTATION:
        return tv.get_model(name, weights=None, weights_backbone=None), Inputs((torch.randn(1, 3, 128, 128),))
    if name in VIDEO:
        return _video(name)
    options = {"aux_logits": False, "init_weights": False} if name in {"googlenet", "inception_v3"} else {}
    size = 299 if name == "inception_v3" else 224
    return tv.get_model(name, weights=None, **options), Inputs((torch.randn(1, 3, size, size),))


def _detection_options(name: str) -> dict[str, float]:
    """Small images; and boxes that an untrained net is not sure of count, or it would find none."""
    options: dict[str, float] = {} if name.startswith("ssd") else {"min_size": 160, "max_size": 224}
    prefix = "box_" if "rcnn" in name else ""
    return {**options, f"{prefix}score_thresh": 0.0, f"{prefix}detections_per_img": 10}


def _video(name: str) -> tuple[nn.Module, Inputs]:
    # MViT is built for clips of 16 frames of 224x224; S3D pools 7x7 at the end; the rest take any.
    frames, size = {"mvit_v1_b": (16, 224), "mvit_v2_s": (16, 224), "s3d": (16, 224)}.get(name, (8, 112))
    return tv.get_model(name, weights=None), Inputs((torch.randn(1, 3, frames, size, size),))
