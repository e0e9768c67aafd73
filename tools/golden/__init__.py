"""Checks of recorded fixtures, one module a system."""
