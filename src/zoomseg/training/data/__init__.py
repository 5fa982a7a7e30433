"""Training patches: preprocessing, sampling, augmentation, prefetch."""
