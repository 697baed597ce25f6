"""speechkit.audio."""
