"""Rows, scenes, tokenizing and the plan-driven pipeline."""
