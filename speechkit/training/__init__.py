"""speechkit.training."""
