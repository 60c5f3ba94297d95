"""Records of an offline run: read ahead, and what they say as a method takes it."""
