"""Ablation tables of papers, trained and scored on other data."""
