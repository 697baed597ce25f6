"""speechkit.losses."""
