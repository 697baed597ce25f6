"""speechkit.metrics."""
