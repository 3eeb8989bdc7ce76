"""TensorRT: engines out of ONNX graphs, and what is read back of them."""
