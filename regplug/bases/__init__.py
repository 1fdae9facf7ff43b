"""The kinds of plugins that authors subclass, and what all penalties have in common."""
