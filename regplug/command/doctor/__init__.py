"""``regplug doctor``: a script, unedited, and what its regularization really does."""
