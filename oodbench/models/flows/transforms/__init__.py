"""Bijections and surjections: the layers that flows are lists of. One idea a file; states are channels last."""
