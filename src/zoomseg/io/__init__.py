"""Files in and out: scans, label maps, the training cache, trained models."""
