"""Recipes: their specification, checks, and the recipes that come with ZoomSeg."""
