"""Input and output: scans, label maps, the training cache, trained models."""
