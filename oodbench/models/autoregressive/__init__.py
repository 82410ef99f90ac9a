"""Autoregressive models: log P(x) = sum_i log P(x_i | x_<i), exact on discrete images."""
