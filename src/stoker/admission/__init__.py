"""Who asks, how often, for what, and is it an attack: everything that can refuse a request before it costs a slot."""
