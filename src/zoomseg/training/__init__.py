"""The training run: stage groups, loop, losses, checkpoints, folds, fine-tuning, distillation."""
