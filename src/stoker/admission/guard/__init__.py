"""Is this text an attack on the model, and would this answer leak what must stay inside?"""
