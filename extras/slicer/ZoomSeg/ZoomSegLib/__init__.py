"""What the module does that needs nothing of 3D Slicer."""
