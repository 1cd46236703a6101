"""Run files: what they may say, how they are read, and what to tell a user who got one wrong."""
