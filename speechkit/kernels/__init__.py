"""speechkit.kernels."""
