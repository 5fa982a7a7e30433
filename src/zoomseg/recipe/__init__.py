"""The specification of recipes, their checks, and the recipes that come with ZoomSeg."""
