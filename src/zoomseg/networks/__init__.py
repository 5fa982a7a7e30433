"""The networks as torch modules, built from a recipe."""
