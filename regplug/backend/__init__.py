"""What is known here of the libraries below that no documentation of theirs promises."""
