"""The cascade: region, grid, inputs, sliding window, fusion."""
