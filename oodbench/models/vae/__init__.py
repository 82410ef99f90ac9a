"""Variational autoencoders: ELBO to train, importance-weighted estimates to report."""
