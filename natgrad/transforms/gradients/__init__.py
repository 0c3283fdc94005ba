"""Transformations that see gradients alone, by Kronecker factors of them."""
