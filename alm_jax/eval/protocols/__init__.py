"""Protocols: how clips become questions, and answers scores; `eval.benchmarks` says which data set is asked how."""
