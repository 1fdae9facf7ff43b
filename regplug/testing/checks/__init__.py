"""The questions of the exam: a module for each matter, which registers its checks."""
