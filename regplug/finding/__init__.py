"""What a running program trains, found without a word from it."""
