"""A simulation of 1 to 1,000 replicas of Stoker, driven by service times that were measured here.

Event by event, in virtual time: nothing sleeps, and one seed gives one result. The waiting line and the meter of each
replica are Stoker's own classes, not a model of them. `theory` holds what is known about simpler systems in closed
form; the tests hold the simulation against it.
"""
