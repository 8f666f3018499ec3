"""A new version of a model takes over from the running one: tried, evaluated, switched to, watched, and taken back."""
