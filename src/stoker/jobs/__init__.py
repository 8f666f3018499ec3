"""Asynchronous jobs: requests that are answered later, and the webhooks that tell of their ends."""
