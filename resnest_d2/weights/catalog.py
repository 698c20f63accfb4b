"""The published weight files and the places that hold them."""

# The eight hex digits in each name are the start of the file's SHA-256 (torch.hub's convention).
IMAGENET: dict[str, str] = {
    "resnest14": "gluon_resnest14-9c8fe254.pth",
    "resnest26": "gluon_resnest26-50eb607c.pth",
    "resnest50": "resnest50-528c19ca.pth",
    "resnest101": "resnest101-22405ba7.pth",
    "resnest200": "resnest200-75117900.pth",
    "resnest269": "resnest269-0cc87c48.pth",
    "resnest50_fast_1s1x64d": "resnest50_fast_1s1x64d-d8fbf808.pth",
    "resnest50_fast_2s1x64d": "resnest50_fast_2s1x64d-44938639.pth",
    "resnest50_fast_4s1x64d": "resnest50_fast_4s1x64d-f74f3fc3.pth",
    "resnest50_fast_1s2x40d": "resnest50_fast_1s2x40d-32830b84.pth",
    "resnest50_fast_2s2x40d": "resnest50_fast_2s2x40d-9d126481.pth",
    "resnest50_fast_4s2x40d": "resnest50_fast_4s2x40d-41d14ed0.pth",
    "resnest50_fast_1s4x24d": "resnest50_fast_1s4x24d-d4a4f76f.pth",
}

# The authors' release, timm's copy of it, and timm's conversions of GluonCV's; tried in this order.
IMAGENET_SOURCES: tuple[str, ...] = (
    "https://github.com/zhanghang1989/ResNeSt/releases/download/weights_step1/",
    "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-resnest/",
    "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-weights/",
)
