"""What outlives a request and what replicas share: narrow protocols, each with an embedded and a Redis adapter."""
