"""Protocols that score a model's answers, one module a benchmark."""
