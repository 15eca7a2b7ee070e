"""Images: reading, decoding, augmentation."""
