"""PyTorch to verified ONNX bundles."""
