"""The tests; a regular package, since some libraries install one of this name."""
