"""A trained model as one zip that runs without ZoomSeg."""
