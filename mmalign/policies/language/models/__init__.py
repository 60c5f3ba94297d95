"""Language models made ready and run: loading, memory, prompts that rows share, logits a few at a time."""
