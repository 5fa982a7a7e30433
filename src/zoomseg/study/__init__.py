"""Ablation tables of papers, trained and scored on one's own data."""
