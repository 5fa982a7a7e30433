"""What a recipe may say, its checks and the recipes that come with ZoomSeg."""
