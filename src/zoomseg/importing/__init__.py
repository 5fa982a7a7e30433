"""Conversion of models of other programs to ZoomSeg models."""
