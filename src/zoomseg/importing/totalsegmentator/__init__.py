"""TotalSegmentator v2's models, from the weights on a user's disk: tasks of one or several nnU-Net models."""
