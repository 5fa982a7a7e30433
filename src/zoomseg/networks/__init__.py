"""Networks as torch modules, built from a recipe."""
