"""Objects by key, in S3 or a directory."""
