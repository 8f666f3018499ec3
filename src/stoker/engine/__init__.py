"""Engines: planning, supervising and speaking to the processes that compute tokens."""
