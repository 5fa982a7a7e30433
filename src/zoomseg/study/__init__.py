"""Ablation tables of papers, trained and scored on any data set."""
