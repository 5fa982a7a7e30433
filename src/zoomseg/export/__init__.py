"""Export of a trained model as one zip that runs without ZoomSeg."""
