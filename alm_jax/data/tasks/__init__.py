"""Tasks: labelled clips formulated as rows of questions and answers."""
