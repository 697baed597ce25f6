"""speechkit.search."""
