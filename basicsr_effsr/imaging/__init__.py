"""Images: decoding, encoding, resampling, tiles, scores."""
