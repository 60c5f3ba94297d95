"""People's judgements of outputs: what is shown to whom, what they said, and the preference data that it makes. See README.md."""
