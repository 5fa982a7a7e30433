"""nnU-Net v2's trained models: plans, data set description and checkpoints."""
