"""Reading a dataset for training: stores, order, decoding, cached features; ``animeshooter_streams`` is their face."""
