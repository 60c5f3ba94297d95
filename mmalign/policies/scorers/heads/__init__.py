"""What makes scores of features, one file for each head: ``policy: {use: scorer, head: {use: NAME, ...}}``."""
