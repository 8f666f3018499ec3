"""Chooses among expert models: rules, stickiness, and a classifier that is trained at start from the configuration."""
