"""optax transformations of any curvature: its step, damping and trust regions."""
