"""Trained models of nnU-Net v2: plans, data set description and checkpoints."""
