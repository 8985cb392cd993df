"""Instruments that look at a network from outside: what they measure comes with a verdict or a figure."""
