"""Metrics: functions of answers and what is true, without a model or files."""
