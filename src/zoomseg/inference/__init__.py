"""From a loaded model to results: predictor, batches, memory limits, confidence, resource usage."""
