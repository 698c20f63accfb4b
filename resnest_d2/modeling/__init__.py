"""ResNeSt and the parts of detectors that Detectron2 does not have."""
