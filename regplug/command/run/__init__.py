"""``regplug run``: a script, unedited, with plugins attached to what it trains."""
