"""Detectors as files that run elsewhere: ONNX, torch.export, AOTInductor, TorchScript."""
