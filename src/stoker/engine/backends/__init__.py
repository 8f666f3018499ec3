"""Programs that run as engine child processes. Nothing else in Stoker imports them."""
