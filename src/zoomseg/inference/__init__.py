"""Results from a loaded model: predictor, batches, memory limits, confidence, resource usage."""
