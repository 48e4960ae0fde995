"""Networks from images to inverse depth and to motion, and their way in (weights) and out (ONNX)."""
