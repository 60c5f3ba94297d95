"""From words, images and videos to token ids, by the model's own template and processor."""
