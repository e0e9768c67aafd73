"""Weights in and out: checkpoint formats, model names, and the rules that map official keys to ours."""
