"""What runs a stage's network: devices, torch modules and ONNX graphs."""
