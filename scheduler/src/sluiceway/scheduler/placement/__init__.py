"""Who should hold what: constraints, packing and bounded moves. Pure."""
