"""Names and specs turned into plugins, by way of what is installed."""
