"""Building blocks shared by encoders, aligners and decoders. Activations decide the compute dtype."""
