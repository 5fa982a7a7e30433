"""The networks as torch modules, and what builds them from a recipe."""
