"""Density models: a batch of images in, nats out."""
