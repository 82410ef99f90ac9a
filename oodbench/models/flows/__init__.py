"""Normalising flows: log p(x) = log p(z) + log |det dz/dx|."""
