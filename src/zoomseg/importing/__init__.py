"""Models of other programs made ZoomSeg models."""
