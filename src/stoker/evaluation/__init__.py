"""Whether a model still answers as it should: questions with known answers, asked of any server, and a verdict."""
