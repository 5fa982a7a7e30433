"""The cascade: region, grid, network inputs, sliding window and fusion of every stage."""
