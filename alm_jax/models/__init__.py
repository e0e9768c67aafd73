"""Encoders, aligners, decoders, and the systems that join them."""
