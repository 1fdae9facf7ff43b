"""How a formula is executed over all that it covers."""
