from .mask_resnest50 import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.depth = 101
train["init_checkpoint"] = "resnest://ImageNet/resnest101"
