"""Computation of a stage's network: devices, torch, ONNX graphs."""
