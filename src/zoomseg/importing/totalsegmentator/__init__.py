"""TotalSegmentator v2's models, where a user has their weights: tasks of one or several nnU-Net models."""
