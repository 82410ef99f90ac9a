"""Densities on embedded surfaces of fewer dimensions than the image has, and the autoencoder that is a bijection."""
