"""Posteriors over weights: many weights of one architecture, made from any registered model, `sghmc(vae)` say."""
