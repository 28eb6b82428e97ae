"""Networks between images and vectors: encoders, decoders and what they are built of."""
