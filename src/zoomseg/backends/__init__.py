"""What computes a stage's network: devices, torch, ONNX graphs."""
