"""Stored answers, and generations that several callers share."""
